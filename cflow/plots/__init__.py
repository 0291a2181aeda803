"""Pictures, on the plane and on manifolds; each is written to a PNG file. Needs matplotlib."""

from cflow.plots.manifolds import globe, ramachandran, surface
from cflow.plots.pictures import curves, image_grid, trajectories

__all__ = ["curves", "globe", "image_grid", "ramachandran", "surface", "trajectories"]
