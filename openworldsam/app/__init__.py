"""A page in the browser on the predictor: a picture and texts in, masks out, corrected by clicks."""
