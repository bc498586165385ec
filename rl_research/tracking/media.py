"""Pictures and films as W&B and browsers need them: uint8, channels last, even sizes, H.264."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rl_research.errors import LoggingError, in_a_line, shown
from rl_research.system import replacing

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
VIDEO_SUFFIXES = (".mp4", ".gif", ".webm")
_CHANNELS = (1, 3, 4)


def image_pixels(image: Any, name: str = "image") -> Pixels:
    """Return *image* as uint8 of shape (H, W), (H, W, 3) or (H, W, 4); raise `LoggingError` for what is none.

    Takes arrays and tensors (HW, HWC or CHW; uint8, bool, or float in [0, 1]), PIL images,
    matplotlib figures and paths of picture files.
    """
    pixels = _uint8(_array(image, name), name)
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise LoggingError(
            f"image {name!r} has shape {pixels.shape}; give (H, W), (H, W, C) or (C, H, W)."
            + (" Several frames go to log_video." if pixels.ndim > 3 else "")
        )
    if pixels.ndim == 3:
        pixels = _channels_last(pixels, name, first=0)
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return np.ascontiguousarray(pixels)


def video_frames(video: Any, name: str = "video") -> Pixels:
    """Return *video* as uint8 of shape (T, H, W, 3) with even height and width, or raise `LoggingError`.

    Takes (T, H, W), (T, H, W, C), (T, C, H, W), (N, T, …) whose films are set side by side, and
    any iterable of pictures of one size.
    """
    frames = _uint8(_stack(video, name), name)
    one_picture = frames.ndim == 3 and frames.shape[-1] in _CHANNELS
    if frames.ndim not in (3, 4, 5) or frames.size == 0 or one_picture:
        raise LoggingError(
            f"video {name!r} has shape {frames.shape}; give (T, H, W), (T, H, W, C) or "
            "(T, C, H, W) with T > 0. A single picture goes to log_image."
        )
    frames = frames[..., None] if frames.ndim == 3 else _channels_last(frames, name, first=-3)
    if frames.ndim == 5:
        frames = np.concatenate(list(frames), axis=2)
    frames = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames[..., :3]
    odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2
    return np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")


def write_video(pixels: Pixels, path: str | os.PathLike[str], fps: float = 30) -> Path:
    """Encode what `video_frames` returns into *path*, as H.264 in yuv420p, which every browser plays."""
    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise LoggingError(f"{target.name!r}: a video is written as mp4: {target.stem}.mp4.")
    if not (isinstance(fps, (int, float, np.number)) and 0 < fps <= 1000):
        raise LoggingError(f"fps={shown(fps)}: give frames per second between 0 and 1000, such as 30.")
    from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

    clip = ImageSequenceClip(list(pixels), fps=float(fps))
    how = {"codec": "libx264", "pixel_format": "yuv420p", "ffmpeg_params": ["-f", "mp4"]}
    with replacing(target) as temporary:
        clip.write_videofile(str(temporary), audio=False, logger=None, **how)
    return target


def video_path(path: str | os.PathLike[str], name: str = "video") -> Path:
    """Return *path* if a film is there that can be logged as it is; raise `LoggingError` if not."""
    found = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113  # is False where Path's own raises: a name that is too long
        raise LoggingError(f"video {name!r}: there is no file {shown(path)}.")
    if found.suffix.lower() not in VIDEO_SUFFIXES:
        raise LoggingError(
            f"video {name!r}: {found.name!r} is not {', '.join(VIDEO_SUFFIXES)}; convert it, or give the frames."
        )
    return found


def _stack(video: Any, name: str) -> NDArray[Any]:
    if not isinstance(video, Iterable):
        raise LoggingError(f"video {name!r} is of type {type(video).__name__}; give frames or a path.")
    if hasattr(video, "shape"):
        return _array(video, name)
    frames = [image_pixels(frame, f"{name}[{t}]") for t, frame in enumerate(video)]
    if not frames:
        raise LoggingError(f"video {name!r} has no frames. Record at least one.")
    if len(shapes := {frame.shape for frame in frames}) > 1:
        raise LoggingError(f"video {name!r} has frames of several shapes: {sorted(shapes)}.")
    return np.stack(frames)


def _array(image: Any, name: str) -> NDArray[Any]:
    """Return the numbers of whatever shows a picture."""
    is_file = isinstance(image, str | os.PathLike)
    try:
        if hasattr(image, "savefig"):  # a matplotlib figure
            image.savefig(png := io.BytesIO(), format="png")
            image = png
        if isinstance(image, str | os.PathLike | io.BytesIO):
            from PIL import Image

            with Image.open(image) as picture:
                return _decoded(picture)
        if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL image
            return _decoded(image)
        if hasattr(image, "detach"):  # a torch tensor; bfloat16 has no NumPy type
            image = image.detach().cpu()
            image = image.float().numpy() if image.is_floating_point() else image.numpy()
        return np.asarray(image)
    except Exception as error:  # noqa: BLE001  # a decoder's, torch's or the object's own
        what = f"image {name!r} cannot be read" if is_file else f"{name!r} is not an array of numbers"
        raise LoggingError(f"{what}: {in_a_line(error)}.") from None


def _decoded(picture: Image.Image) -> NDArray[Any]:
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if "A" in picture.mode else "RGB")
    return np.asarray(picture)


def _uint8(values: NDArray[Any], name: str) -> Pixels:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise LoggingError(f"{name!r} has dtype {values.dtype}; give uint8, or float in [0, 1].")
    if values.size == 0:
        return values.astype(np.uint8)
    low, high, top = values.min(), values.max(), 1 if values.dtype.kind == "f" else 255
    if not (low >= 0 and high <= top):  # false for NaN, too
        raise LoggingError(_range_error(name, float(low), float(high), top))
    return np.asarray(values * 255.0 + 0.5 if top == 1 else values).astype(np.uint8)


def _range_error(name: str, low: float, high: float, top: int) -> str:
    if np.isnan(low + high):
        return f"{name!r} contains NaN. Mend it, for instance by np.nan_to_num."
    remedy = "Scale it, for instance by (x - x.min()) / (x.max() - x.min())."
    if low >= 0 and 1 < high <= 255:
        remedy = "If these are 0 to 255 already, use .astype('uint8')."
    return f"{name!r} has values from {low:g} to {high:g}; {top} is white and 0 is black. {remedy}"


def _channels_last(pixels: Pixels, name: str, first: int) -> Pixels:
    """Return *pixels* with their channels, which are on the last axis or on axis *first*, on the last."""
    leads, trails = pixels.shape[first] in _CHANNELS, pixels.shape[-1] in _CHANNELS
    if leads == trails:
        reason = "either end could be the channels" if leads else "no end has 1, 3 or 4 channels"
        raise LoggingError(
            f"{name!r} has shape {pixels.shape}: {reason}. Give channels last, (…, H, W, C), "
            "with a height other than 1, 3 or 4."
        )
    return np.moveaxis(pixels, first, -1) if leads else pixels
