"""What eval.py compares: queries and gallery, of models and images or of files."""
