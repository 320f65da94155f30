"""Image layouts: how a picture becomes tiles of one shape, and where their visual tokens stand in the text."""
