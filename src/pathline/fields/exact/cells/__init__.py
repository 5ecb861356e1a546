"""The posterior mean of many points in few dimensions, to a proven error: far points are taken as cells with moments.

Cells are the nodes of a k-d tree that are small enough against sigma. Blocks of near queries walk down it level by
level, all at once: a node that is out of a block's reach is left out and counted in the error, one that is small enough
is taken as a cell, and of a leaf that is not, the points are.
"""

from pathline.fields.exact.cells.search import Cells

__all__ = ["Cells"]
