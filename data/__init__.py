"""Where samples come from: image folders, transforms, rendered glyphs, embedding files."""
