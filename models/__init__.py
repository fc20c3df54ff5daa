"""What maps images or embeddings to embeddings, and the one place that saves and loads them."""
