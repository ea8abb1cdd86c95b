"""HTML page about one or several evaluations: scores, per-class metrics, confusions and pictures side by side."""
