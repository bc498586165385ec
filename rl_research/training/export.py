"""A policy for other programs: as ONNX, as TorchScript, as SB3's own files, or as a folder for the Hugging Face Hub."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_research.checkpoints import Checkpoint
from rl_research.errors import ConfigError, RLResearchError, in_a_line
from rl_research.report import card
from rl_research.system import write_atomically
from rl_research.tracking import MODEL, NORMALIZER
from rl_research.training.acting import Acting
from rl_research.training.evaluation import config_of, evaluate_checkpoint
from rl_research.training.library import Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 17  # of ONNX; any runtime since 2022 reads it
_OBSERVATIONS = 100  # on which what was exported has to act as the policy does
_Arrays = list["NDArray[Any]"]


def export_policy(checkpoint: Checkpoint, to: str, folder: Path, *, trust_plugins: bool = False) -> dict[str, Any]:
    """Write the policy of *checkpoint* into *folder* as *to* says, and return what was written.

    ``onnx`` and ``torchscript`` take a batch of observations as the environment gives them, one input per key of a
    Dict space, normalise them as in training, and return the deterministic actions. They are compared with `predict`
    on 100 observations of the policy's own episodes; where they differ, `RLResearchError` is raised and nothing is
    written. ``zip`` has SB3's ``model.zip`` and ``vecnormalize.pkl``; ``hub`` has them under the names that the Hub's
    users expect, with a model card, and uploads nothing.
    """
    files, facts = _WRITERS[to](checkpoint, trust_plugins)
    for name, data in files.items():
        write_atomically(folder / name, data)
    return {
        "to": to,
        "folder": str(folder),
        "files": sorted(files),
        "checkpoint": checkpoint.address,
        "global_step": checkpoint.global_step,
        **facts,
    }


Written = tuple[dict[str, bytes], dict[str, Any]]


def _as_zip(checkpoint: Checkpoint, trust_plugins: bool) -> Written:  # noqa: ARG001  # of all writers' form
    return {name: checkpoint.read(name) for name in (MODEL, NORMALIZER) if name in checkpoint.files}, {}


def _as_torchscript(checkpoint: Checkpoint, trust_plugins: bool) -> Written:
    import torch

    def script(acting: Acting, example: tuple[Any, ...]) -> bytes:
        traced = torch.jit.trace(acting, example)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, out := io.BytesIO())
        return out.getvalue()

    def run(data: bytes, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        loaded = torch.jit.load(io.BytesIO(data))  # type: ignore[no-untyped-call]
        return loaded(*map(torch.as_tensor, inputs.values())).numpy()  # type: ignore[no-any-return]  # untyped

    return _traced(checkpoint, trust_plugins, "policy.pt", script, run)


def _as_onnx(checkpoint: Checkpoint, trust_plugins: bool) -> Written:
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(
                f"--to onnx: it needs {package}, which is not installed. "
                "Install it with: pip install 'rl-research[onnx]'."
            ) from None
    import onnxruntime
    import torch

    def script(acting: Acting, example: tuple[Any, ...]) -> bytes:
        names = [*acting.inputs, "action"]
        out: Any = io.BytesIO()  # typed as a path alone
        torch.onnx.export(
            acting, example, out, opset_version=OPSET, dynamo=False, input_names=names[:-1],
            output_names=["action"], dynamic_axes={name: {0: "batch"} for name in names},
        )  # fmt: skip
        return out.getvalue()  # type: ignore[no-any-return]

    def run(data: bytes, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return session.run(None, dict(inputs))[0]  # type: ignore[no-any-return]  # untyped

    files, facts = _traced(checkpoint, trust_plugins, "policy.onnx", script, run)
    return files, {**facts, "opset": OPSET}


def _traced(
    checkpoint: Checkpoint,
    trust_plugins: bool,
    name: str,
    script: Callable[[Acting, tuple[Any, ...]], bytes],
    run: Callable[[bytes, Mapping[str, NDArray[Any]]], NDArray[Any]],
) -> Written:
    """Return what *script* makes of the policy, as the file *name*, once *run* has shown that it acts alike."""
    import torch

    policy = Policy(checkpoint, trust_plugins)
    _check_forward(policy)
    acting = Acting(policy.model).eval().cpu()
    inputs = acting.named(policy.seen(_OBSERVATIONS))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about what the comparison below decides
        try:
            data = script(acting, tuple(torch.as_tensor(array[:2]) for array in inputs.values()))
            found = run(data, inputs)
        except Exception as error:  # a user's network may hold what cannot be traced
            raise RLResearchError(_refusal(policy, f"it cannot be traced: {in_a_line(error)}")) from error
    expected, _ = policy.predict(acting.observation(inputs))
    difference = np.abs(found.astype(np.float64) - expected).max()
    if not np.allclose(found, expected, rtol=1e-4, atol=1e-5):
        raise RLResearchError(_refusal(policy, f"traced, it acts otherwise than before by up to {difference:.3g}"))
    described = {
        key: {"dtype": str(array.dtype), "shape": ["batch", *array.shape[1:]]} for key, array in inputs.items()
    }
    facts = {"inputs": described, "observations": _OBSERVATIONS, "largest_difference": float(difference)}
    return {name: data, "export.json": (json.dumps(facts, indent=2) + "\n").encode()}, facts


def _check_forward(policy: Policy) -> None:
    """Raise `RLResearchError` for a policy with a memory, such as RecurrentPPO's."""
    if "lstm_states" in inspect.signature(policy.model.policy.forward).parameters:
        raise RLResearchError(_refusal(policy, "it acts with a memory, which such a file has no place for"))


def _refusal(policy: Policy, reason: str) -> str:
    return f"{policy.checkpoint.address}: {type(policy.model.policy).__name__}: {reason}. Export it with --to zip."


def _as_hub(checkpoint: Checkpoint, trust_plugins: bool) -> Written:
    config = config_of(checkpoint, trust_env=trust_plugins)
    scores = evaluate_checkpoint(checkpoint, trust_env=trust_plugins)
    stem = f"{config.algorithm.name}-{config.env.id.rpartition(':')[2].replace('/', '-')}"
    plain, _ = _as_zip(checkpoint, trust_plugins)
    names = {MODEL: f"{stem}.zip", NORMALIZER: "vec_normalize.pkl"}
    files = {names[name]: data for name, data in plain.items()}
    files["README.md"] = card(checkpoint.manifest, config, scores, stem).encode()
    files["config.json"] = (json.dumps(checkpoint.manifest.config, indent=2) + "\n").encode()
    files["results.json"] = (json.dumps(scores.model_dump(exclude={"format"}), indent=2) + "\n").encode()
    return files, {"scores": scores.summary()}


_WRITERS = {"zip": _as_zip, "torchscript": _as_torchscript, "onnx": _as_onnx, "hub": _as_hub}
FORMATS = tuple(_WRITERS)
