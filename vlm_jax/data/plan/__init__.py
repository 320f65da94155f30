"""Which records stand in which row: sizes, mixture and packing, known before any pixel is decoded."""
