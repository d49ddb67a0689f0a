"""Options of an evaluation that users have a reason to change. Thresholds and tuning are constants of `medsynth.evaluation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from medsynth.config.bounds import Bounds, Code


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """The network whose features are compared.

    Args:
        extractor: `lite0` (EfficientNet-Lite0, ImageNet weights, installed with medsynth), `inception` (the network of
            FID; needs the extra `fid` and `weights`), `radimagenet` (a ResNet-50 trained on radiology; needs
            `weights`), or your own `module:function` from a torch batch (N, C, *spatial) in [-1, 1] to features (N, D).
        weights: File with the weights of `inception` or `radimagenet`.
        sha256: Hash that the weights (or your module) must have. The report states the hash in any case.
    """

    extractor: Annotated[str, Code(("lite0", "inception", "radimagenet"))] = "lite0"
    weights: str = ""
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class DownstreamOptions:
    """The gain of a classifier of the rare class against the rest.

    Args:
        rare_class: The class to find. [default: the one with the fewest real training scans]
        tier: `probe` trains logistic regressions on features (minutes); `full` also trains networks on pixels for the
            best arms.
        seeds: Trainings of each arm; they differ in initialisation, order and draw of the synthetic scans.
        shares: Shares of synthetic scans to try.
        arms: How synthetic scans are used: `rare` (in the rare class only), `all` (in every class alike), `pretrain`
            (first, real scans after). With few validation patients, name one arm and one share.
        subgroups: Attribute columns for figures by subgroup, comma-separated; `auto` takes columns with 2 to 6 values,
            `none` none.
        networks: Networks of `tier full`: `densenet` (MONAI, from scratch, 2D and 3D), `lite0` (EfficientNet-Lite0,
            fine-tuned, 2D).
    """

    rare_class: str | None = None
    tier: Literal["probe", "full"] = "probe"
    seeds: Annotated[int, Bounds(2, 100)] = 5
    shares: Annotated[tuple[float, ...], Bounds(0.001, 1)] = (0.25, 0.5, 0.75)
    arms: tuple[Literal["rare", "all", "pretrain"], ...] = ("rare", "all", "pretrain")
    subgroups: str = "auto"
    networks: tuple[Literal["densenet", "lite0"], ...] = ("densenet", "lite0")
