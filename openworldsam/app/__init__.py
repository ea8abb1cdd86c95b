"""Web page for the predictor: image and prompts in, masks out, corrected by clicks."""
