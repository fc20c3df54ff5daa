"""A gallery in Postgres with pgvector: new vectors beside the old ones, and a switch of the two columns' names."""
