"""MALMEN's rule with a trained hypernetwork (arXiv 2311.04661)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong_edit.editors.contract import Asker, EditorState
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.ridge.gradient import output_metrics


class MalmenEditor:
    """d = h(k, ĝ) − h(k, 0) in this project's solve, h(k, g) in the published one."""

    recalls = True

    def __init__(self, networks: NetworkSet, kappa: float) -> None:
        self.networks, self.kappa = networks, kappa

    def ready(
        self,
        keys: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: EditorState,
        loss: float | None = None,
    ) -> Asker:
        """The network behind the output metric of these gradients (joint), or on raw gradients (published)."""
        if self.networks.config.form == "published":
            return Asker(self._ask)
        metric = output_metrics(gradients, self.kappa)

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            return self._ask(module, keys, gradients @ metric[module])

        return Asker(ask)

    def _ask(self, module: str, keys: Tensor, gradients: Tensor) -> Tensor:
        with torch.no_grad():
            return self.networks.ask(module, keys, gradients)

    def ridge(self, module: str) -> float | None:
        """The learned ridge."""
        return self.networks.ridge(module)
