"""Running frozen models over images, and keeping what comes out."""
