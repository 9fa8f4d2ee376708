"""Images within a conversation: how many, how large, and from where, before any room is sent them."""

from dataclasses import dataclass

from catena.api.types.v1 import types_pb2
from catena.kit.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """At most `most` images a request, and `most_bytes` in each that travels within it."""

    most: int
    most_bytes: int

    def check(self, request: types_pb2.ChatRequest) -> None:
        """Raise Invalid (`too_many_images`, `image_too_large`, `bad_image`) for what is not to be passed on."""
        images = [image for message in request.messages for image in message.images]
        if len(images) > self.most:
            raise Invalid(f"{len(images)} images > {self.most} (gateway.max_images)", code="too_many_images")
        for image in images:
            self._check(image.url)

    def _check(self, url: str) -> None:
        if url.startswith(("https://", "http://")):
            return
        head, comma, data = url.partition(",")
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise Invalid(
                f"image_url {url[:20]!r} is neither an https address nor 'data:image/...;base64,...'", code="bad_image"
            )
        size = 3 * len(data) // 4
        if size > self.most_bytes:
            raise Invalid(
                f"an image of {size} bytes > {self.most_bytes} (gateway.max_image_bytes); send it smaller",
                code="image_too_large",
            )
