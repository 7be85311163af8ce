"""Arrays -> PNG and GIF: sample grids, chains, curves. The only folder that imports matplotlib."""
