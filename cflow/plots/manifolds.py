"""Pictures of densities on manifolds: the globe, a plane of two angles, a coloured mesh."""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cflow.errors import ShapeError, expect_trailing
from cflow.plots.figure import COLOURS, Path, figure_of, save_figure

__all__ = ["globe", "ramachandran", "surface"]

LogProb: TypeAlias = Callable[[Tensor], Tensor]

AT_ONCE = 4096  # points of a grid whose density is asked together
DEPTH = 6.0  # nats from the largest log density to where a picture is white


def globe(
    path: Path,
    log_prob: LogProb,
    events: Mapping[str, Tensor] | None = None,
    *,
    title: str = "",
    size: int = 180,
) -> None:
    """Draw a density on S^2 as a map of the world (Mollweide, equal area), with events on it.

    Args:
        path: The file to write.
        log_prob: Log density of unit vectors `(n, 3)`, `(n,)`: `flow.log_prob`.
        events: Unit vectors `(n, 3)` by label; the first label is drawn small.
        title: Of the picture.
        size: Rows of the grid of densities; there are twice as many columns.

    Raises:
        ShapeError: Events are no vectors of three.
        MissingExtraError: matplotlib is not installed.
    """
    for label, x in (events or {}).items():
        expect_trailing("globe", f"events {label!r}", x, (3,))
    latitude = (torch.arange(size) + 0.5) / size * math.pi - math.pi / 2
    longitude = (torch.arange(2 * size) + 0.5) / size * math.pi - math.pi
    lat, lon = torch.meshgrid(latitude, longitude, indexing="ij")
    x = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)
    values = _asked(log_prob, x)
    figure = figure_of((8.4, 4.6))
    axes = figure.subplots(subplot_kw={"projection": "mollweide"})
    top = float(values.max())
    shade = axes.pcolormesh(
        lon.numpy(), lat.numpy(), values.numpy(), cmap="Blues", vmin=top - DEPTH, vmax=top,
        shading="nearest", rasterized=True,
    )  # fmt: skip
    for k, (label, x) in enumerate((events or {}).items()):
        x = x.detach().cpu().double()
        lon, lat = torch.atan2(x[:, 1], x[:, 0]), torch.asin(x[:, 2].clamp(-1, 1))
        colour, dot = COLOURS[(k + 1) % len(COLOURS)], 2 if k == 0 else 6
        axes.scatter(lon.numpy(), lat.numpy(), s=dot, color=colour, lw=0, alpha=0.7, label=label)
    axes.grid(visible=True, lw=0.3, alpha=0.5)
    axes.set_xticklabels([])
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=10)
    if events:
        axes.legend(fontsize=8, frameon=False, loc="lower right", markerscale=2)
    bar = figure.colorbar(shade, ax=axes, shrink=0.7)
    bar.set_label("log density, nats", fontsize=8)
    save_figure(figure, path)


def ramachandran(
    path: Path,
    panels: Mapping[str, LogProb | Tensor],
    *,
    labels: tuple[str, str] = ("phi", "psi"),
    size: int = 90,
    deep: float = DEPTH,
) -> None:
    """Draw densities or points of two angles, from -180 to 180 degrees.

    Args:
        path: The file to write.
        panels: By title, the log density of angles `(n, 2)` in [0, 2 pi), or points of that kind.
        labels: What the angles are called.
        size: Rows and columns of the grid of densities.
        deep: Nats from the largest log density to where a panel is white.

    Raises:
        ShapeError: Points are not pairs of angles.
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_of((3.3 * len(panels), 3.6))
    row = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    side = (torch.arange(size) + 0.5) / size * 360 - 180
    phi, psi = torch.meshgrid(side, side, indexing="xy")
    grid = torch.deg2rad(torch.remainder(torch.stack([phi, psi], -1), 360))
    for (title, panel), axes in zip(panels.items(), row, strict=True):
        if isinstance(panel, Tensor):
            expect_trailing("ramachandran", f"points {title!r}", panel, (2,))
            turned = torch.rad2deg(panel.detach().cpu().double())
            turned = torch.remainder(turned + 180, 360) - 180
            axes.scatter(turned[:, 0], turned[:, 1], s=0.6, lw=0, color=COLOURS[0], alpha=0.5)
        else:
            values = _asked(panel, grid)
            top = float(values[values.isfinite()].max())
            values = values.clamp_min(top - deep)
            axes.pcolormesh(
                side.numpy(), side.numpy(), values.numpy(), cmap="Blues", vmin=top - deep,
                vmax=top, shading="nearest", rasterized=True,
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_aspect("equal")
        axes.set_xlim(-180, 180)
        axes.set_ylim(-180, 180)
        axes.set_xticks([-180, -90, 0, 90, 180])
        axes.set_yticks([-180, -90, 0, 90, 180])
        axes.set_xlabel(f"{labels[0]}, degrees", fontsize=8)
        axes.tick_params(labelsize=7)
    row[0].set_ylabel(f"{labels[1]}, degrees", fontsize=8)
    save_figure(figure, path)


def surface(
    path: Path,
    vertices: Tensor,
    faces: Tensor,
    panels: Mapping[str, Tensor],
    *,
    points: Mapping[str, Tensor] | None = None,
    up: int = 1,
    turn: float = 60.0,
    common: bool = False,
) -> None:
    """Draw a closed mesh, seen from one side, each face in the colour of a value.

    Args:
        path: The file to write.
        vertices: Corners, `(vertices, 3)`.
        faces: Numbers of the corners of each face, `(faces, 3)`.
        panels: One value for each face, `(faces,)`, by title, each panel on its own scale.
        points: Points `(n, 3)` on the mesh by title, one panel each; those in sight are drawn.
        up: Axis that points up: 0, 1 or 2.
        turn: Degrees by which the mesh is turned about that axis.
        common: Put all panels on the scale of the first, whose ends stand for what lies beyond.

    Raises:
        ShapeError: A panel has not one value for each face.
        MissingExtraError: matplotlib is not installed.
    """
    for title, values in panels.items():
        if values.shape != faces.shape[:1]:
            raise ShapeError(
                f"surface: {title!r} needs one value for each of the {len(faces)} faces, got "
                f"{tuple(values.shape)}"
            )
    from matplotlib.collections import PolyCollection

    corners = _seen(vertices.detach().cpu().double(), up, turn)
    triangles = corners[faces.cpu()]
    side, other = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normal = torch.linalg.cross(side, other)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    facing = normal[:, 2] > 1e-6
    order = torch.nonzero(facing).flatten()
    order = order[triangles[order, :, 2].mean(1).argsort()]  # far ones first
    light = (0.45 + 0.55 * normal[order, 2].clamp_min(0)).numpy()[:, None]
    points = points or {}
    count = len(panels) + len(points)
    figure = figure_of((3.4 * count, 3.6))
    row = figure.subplots(1, count, squeeze=False)[0]
    from matplotlib import colormaps

    def draw(axes: object, shades: np.ndarray) -> None:
        colours = np.concatenate([shades[:, :3] * light, shades[:, 3:]], 1)
        polygons = PolyCollection(
            list(triangles[order, :, :2].numpy()), facecolors=colours, edgecolors=colours, lw=0.2
        )
        axes.add_collection(polygons)  # type: ignore[attr-defined]

    low, high = 0.0, 0.0
    for k, ((title, values), axes) in enumerate(zip(panels.items(), row, strict=False)):
        if k == 0 or not common:
            low, high = float(values.min()), float(values.max())
        share = ((values - low) / max(high - low, 1e-12))[order.to(values.device)].cpu().numpy()
        draw(axes, colormaps["viridis"](share))
        axes.set_title(title, fontsize=10)
    for (title, x), axes in zip(points.items(), row[len(panels) :], strict=True):
        draw(axes, np.tile([0.85, 0.85, 0.85, 1.0], (len(order), 1)))
        at = _seen(x.detach().cpu().double(), up, turn)
        at = at[_in_sight(at, triangles[facing])]
        axes.scatter(at[:, 0], at[:, 1], s=1.5, lw=0, color=COLOURS[1], zorder=3)
        axes.set_title(title, fontsize=10)
    low, high = corners[:, :2].amin(0), corners[:, :2].amax(0)
    for axes in row:
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        axes.set_aspect("equal")
        axes.axis("off")
    save_figure(figure, path)


@torch.no_grad()
def _asked(log_prob: LogProb, x: Tensor) -> Tensor:
    """Return log densities of a grid of points, `(rows, columns)`."""
    flat = x.reshape(-1, x.shape[-1])
    parts = [log_prob(part).detach().cpu() for part in flat.split(AT_ONCE)]
    return torch.cat(parts).reshape(x.shape[:-1])


def _seen(x: Tensor, up: int, turn: float) -> Tensor:
    """Return points with the first axis to the right, the second up and the third to the eye."""
    a, b = [k for k in range(3) if k != up]
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    sign = 1.0 if up == 1 else -1.0
    right, eye = x[:, a], sign * x[:, b]
    return torch.stack([c * right - s * eye, x[:, up], s * right + c * eye], -1)


def _in_sight(x: Tensor, triangles: Tensor) -> Tensor:
    """Say which points no triangle hides from an eye far up the third axis.

    Args:
        x: Points `(n, 3)`.
        triangles: Corners `(m, 3, 3)`, none of them seen from the side.
    """
    margin = 1e-3 * (triangles.amax((0, 1)) - triangles.amin((0, 1))).max()
    corners = torch.cat([triangles[..., :2], torch.ones_like(triangles[..., :1])], -1)
    weights = torch.linalg.inv(corners)  # rows (x, y, 1) to barycentric coordinates
    depth = (weights @ triangles[..., 2:]).squeeze(-1)
    seen = []
    for part in x.split(500):
        flat = torch.cat([part[:, :2], torch.ones_like(part[:, :1])], -1)
        over = flat @ depth.mT > (part[:, 2] + margin)[:, None]
        inside = (torch.einsum("ni,mij->nmj", flat, weights) >= 0).all(-1)
        seen.append(~(over & inside).any(1))
    return torch.cat(seen)
