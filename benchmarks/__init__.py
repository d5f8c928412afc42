"""Speed and memory of training and acting; see README.md."""
