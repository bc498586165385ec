"""Pictures and films: converted rightly, or refused with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from rl_research.errors import LoggingError
from rl_research.tracking.media import image_pixels, video_frames, video_path, write_video

RNG = np.random.default_rng(0)
HWC = RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)
THWC = RNG.integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        HWC,
        HWC.transpose(2, 0, 1),
        HWC / 255.0,
        (HWC / 255.0).astype(np.float32),
        HWC.astype(np.int64),
        torch.tensor(HWC),
        torch.tensor(HWC).permute(2, 0, 1) / 255,
        Image.fromarray(HWC),
        HWC.tolist(),
        torch.tensor(HWC / 255.0, requires_grad=True),
    ],
)
def test_every_spelling_of_a_picture_is_the_same_picture(image: Any) -> None:
    """Layouts, dtypes and libraries all give the same uint8 pixels."""
    pixels = image_pixels(image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, HWC)


@pytest.mark.parametrize(
    ("image", "shape", "top"),
    [
        (np.ones((5, 6)), (5, 6), 255),
        (np.ones((5, 6, 1)), (5, 6), 255),
        (np.ones((1, 5, 6), bool), (5, 6), 255),
        (np.ones((5, 6, 4)), (5, 6, 4), 255),
        (torch.ones(3, 5, 6, dtype=torch.bfloat16), (5, 6, 3), 255),
        (np.full((5, 6), 0.5), (5, 6), 128),
    ],
)
def test_grey_bool_and_alpha_pictures(image: Any, shape: tuple[int, ...], top: int) -> None:
    """One channel is grey, four keep alpha, and 1.0 is white."""
    pixels = image_pixels(image)
    assert (pixels.shape, pixels.max()) == (shape, top)


def test_files_and_figures_are_pictures(tmp_path: Path) -> None:
    """A PNG file and a matplotlib figure are read as their pixels."""
    Image.fromarray(HWC).save(tmp_path / "x.png")
    np.testing.assert_array_equal(image_pixels(tmp_path / "x.png"), HWC)
    figure = Figure(figsize=(2, 1), dpi=50)
    assert image_pixels(figure).shape == (50, 100, 4)


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (np.full((4, 5), 1.5), "astype"),
        (np.full((4, 5), -0.1), "Scale it"),
        (np.full((4, 5), 300.0), "Scale"),
        (np.full((4, 5), np.nan), "nan_to_num"),
        (np.full((4, 5), 256), "Scale"),
        (np.zeros(3), "(H, W)"),
        (np.zeros((2, 3, 8, 8)), "log_video"),
        (np.zeros((5, 6, 2)), "channels last"),
        (np.zeros((3, 9, 3)), "channels"),
        (np.zeros((0, 5)), "give"),
        (np.array([["a"]]), "dtype"),
        ("nowhere.png", "cannot be read"),
        ([[1, 2], [3]], "array"),
        (object(), "dtype"),
        (None, "dtype"),
    ],
)
def test_what_would_be_ruined_is_refused(image: Any, remedy: str) -> None:
    """Values and shapes that W&B would turn into black or garbage raise one line with a remedy."""
    with pytest.raises(LoggingError) as error:
        image_pixels(image, "state")
    assert remedy in str(error.value)
    assert "'state'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "video",
    [
        THWC,
        THWC.transpose(0, 3, 1, 2),
        list(THWC),
        iter(THWC / 255.0),
        torch.tensor(THWC),
        torch.tensor(THWC).permute(0, 3, 1, 2) / 255,
        [Image.fromarray(frame) for frame in THWC],
        THWC[None],
        THWC.transpose(0, 3, 1, 2)[None],
    ],
)
def test_every_spelling_of_a_film_is_the_same_film(video: Any) -> None:
    """Layouts, dtypes, lists and batches of one all give the same frames."""
    np.testing.assert_array_equal(video_frames(video), THWC)


@pytest.mark.parametrize(
    ("video", "shape"),
    [
        (np.zeros((4, 7, 9)), (4, 8, 10, 3)),
        (np.zeros((4, 7, 9, 3)), (4, 8, 10, 3)),
        (np.zeros((2, 4, 3, 8, 10)), (4, 8, 20, 3)),
        (np.zeros((4, 8, 10, 4)), (4, 8, 10, 3)),
        (np.zeros((1, 8, 10, 3)), (1, 8, 10, 3)),
    ],
)
def test_films_have_three_channels_and_even_sizes(video: Any, shape: tuple[int, ...]) -> None:
    """Grey films get colours, alpha goes, odd sizes are padded, batches stand side by side."""
    assert video_frames(video).shape == shape


@pytest.mark.parametrize(
    ("video", "remedy"),
    [
        (np.zeros((0, 8, 8, 3)), "T > 0"),
        ([], "no frames"),
        (np.zeros((8, 10, 3)), "log_image"),
        (np.zeros((5, 6)), "log_image"),
        (np.zeros((4, 3, 8, 3)), "channels"),
        (np.zeros((4, 7, 8, 9)), "channels"),
        (np.full((2, 8, 8, 3), 7.0), "astype"),
        ([np.zeros((8, 8)), np.zeros((8, 9))], "several shapes"),
        (3, "frames or a path"),
        (np.full((2, 8, 8), np.nan), "NaN"),
    ],
)
def test_what_is_no_film_is_refused(video: Any, remedy: str) -> None:
    """Empty, ambiguous and out-of-range films raise one line with a remedy."""
    with pytest.raises(LoggingError, match=remedy):
        video_frames(video, "episode")


@pytest.mark.parametrize("shape", [(5, 31, 33, 3), (5, 3, 16, 16), (3, 2, 2)])
def test_a_written_film_plays(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The file is H.264 in yuv420p with every frame, and no temporary file stays."""
    import imageio_ffmpeg

    path = write_video(video_frames(RNG.random(shape)), tmp_path / "sub" / "film.mp4", fps=10)
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    assert facts["codec"] == "h264"
    assert "yuv420p" in facts["pix_fmt"]
    assert len(list(reader)) == shape[0]


@pytest.mark.parametrize("fps", [0, -1, "30", None, float("nan")])
def test_fps_is_a_positive_number(fps: Any, tmp_path: Path) -> None:
    """A film needs a positive frame rate."""
    with pytest.raises(LoggingError, match="fps"):
        write_video(video_frames(THWC), tmp_path / "x.mp4", fps)


def test_films_are_given_as_existing_files_of_known_kinds(tmp_path: Path) -> None:
    """A missing file and an unknown suffix are told apart."""
    (tmp_path / "x.avi").touch()
    (tmp_path / "x.webm").touch()
    assert video_path(tmp_path / "x.webm") == tmp_path / "x.webm"
    with pytest.raises(LoggingError, match="no file"):
        video_path(tmp_path / "none.mp4")
    with pytest.raises(LoggingError, match="convert it"):
        video_path(tmp_path / "x.avi")
    with pytest.raises(LoggingError, match="mp4"):
        write_video(video_frames(THWC), tmp_path / "x.gif")
