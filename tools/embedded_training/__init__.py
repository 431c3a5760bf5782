"""The stages of training the embedded model; run by ``tools/train_embedded.py``."""
