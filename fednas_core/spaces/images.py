"""What spaces of networks for images have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fednas_core.base.errors import ConfigError
from fednas_core.spaces.space import Signature, Space

if TYPE_CHECKING:
    from typing import Self


class ImageSpace(Space):
    """A base of spaces of networks that classify square images: `image_size` is their height and width in pixels."""

    image_size: int
    in_channels: int
    classes: int

    @property
    def signature(self) -> Signature:
        """Images in, one logit a class out."""
        return Signature((self.in_channels, self.image_size, self.image_size), self.classes)

    def for_data(self, signature: Signature) -> Self:
        """Return this space for images of another size, channel count or number of classes."""
        return self._changed(**self._images(signature))

    def _images(self, signature: Signature) -> dict[str, int]:
        """Return a signature as fields."""
        if len(signature.inputs) != 3 or signature.inputs[1] != signature.inputs[2]:
            raise ConfigError(
                f"search space '{self.name}': its networks take square images, (channels, size, size), and the data "
                f"are of shape {signature.inputs}; choose a space for such data"
            )
        channels, size, _ = signature.inputs
        return {"image_size": size, "in_channels": channels, "classes": signature.outputs}

    def _check_images(self) -> None:
        """Refuse images or classes that there cannot be."""
        for field, least in (("in_channels", 1), ("classes", 2), ("image_size", 1)):
            found = getattr(self, field)
            self._must(found >= least, field, found, f"an integer of at least {least}")

    def _check_norm(self, size: int) -> None:
        """Refuse a normalisation that has nothing to go by in feature maps of `size` × `size` pixels, the smallest."""
        if self.norm == "parametric-sample" and size < 2:
            raise ConfigError(
                f"search space '{self.name}': norm = 'parametric-sample' takes the spread of a channel from one image, "
                f"and with images of {self.image_size} pixels the last feature maps have a single one; use larger "
                "images, fewer strides or another normalisation, e.g. parametric"
            )
