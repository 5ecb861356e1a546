"""Networks ``net(x, t, /, *, condition=None)``; any ``nn.Module`` of your own serves as well."""

from pathline.nets.mlp import MLP

SHIPPED = {"MLP": MLP}
"""Networks that a checkpoint can name."""

__all__ = ["MLP", "SHIPPED"]
