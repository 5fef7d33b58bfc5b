"""What a workload asks of a model beside its forward, for models that stand in for the ViT."""

from __future__ import annotations


class StandIn:
    """A model that has nothing to fold and decides nothing by itself."""

    def fold_for_inference(self) -> None:
        return None

    def choices(self, batch: int) -> dict[str, str]:
        return {}
