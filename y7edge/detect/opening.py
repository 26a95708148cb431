"""Open and describe a Detector's model: an artifact, another exporter's ONNX, a checkpoint."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path

from y7edge.artifact.description import Size, pair
from y7edge.artifact.foreign import REASON
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.schema import require_fit
from y7edge.detect.criteria import Conf, criteria_for
from y7edge.detect.inference import Inference
from y7edge.detect.model import OpenModel
from y7edge.detect.selftest import repeat_probes
from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.files import is_file
from y7edge.models import registry as variants
from y7edge.models.checkpoint import SUFFIXES
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions

WARMUP_RUNS = 3


@dataclass(frozen=True)
class Choices:
    """What the user of a Detector chose; it applies to every model that the Detector opens.

    The fields are the arguments of ``Detector``, and ``clock``, which returns nanoseconds.
    """

    backend: str = "auto"
    options: SessionOptions = field(default_factory=SessionOptions)
    imgsz: Size | None = None
    names: Sequence[str] | None = None
    conf: Conf | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: str | Iterable[int | str] | None = None
    agnostic: bool = False
    clock: Callable[[], int] = time.perf_counter_ns

    def __post_init__(self) -> None:
        require_fit(Choices, {one.name: getattr(self, one.name) for one in fields(self)})
        # They are read again for another model: an iterator would be empty then.
        if isinstance(self.conf, Mapping):
            object.__setattr__(self, "conf", dict(self.conf))
        if isinstance(self.classes, Iterable) and not isinstance(self.classes, str):
            object.__setattr__(self, "classes", tuple(self.classes))

    def open(self, source: str | Path) -> OpenModel:
        """Open a model; errors are those of ``Detector``."""
        session, manifest = open_model(source, self.backend, self.options, self.imgsz, self.names)
        try:
            return self.use(session, manifest)
        except BaseException:
            session.close()
            raise

    def use(self, session: Session, manifest: Manifest) -> OpenModel:
        """Return the model of an open session.

        Raises:
            ConfigError, ArtifactError: a threshold, input or output is not supported.
        """
        criteria = criteria_for(
            manifest, self.conf, self.iou, self.max_det, self.classes, self.agnostic
        )
        inference = Inference(manifest, criteria, self.clock)
        return OpenModel(session, manifest, criteria, inference, session.on_device is not None)

    def open_proved(self, source: str | Path, instead_of: Manifest) -> OpenModel:
        """Open a model that replaces another one: check its digest, repeat its probes, warm it up.

        A checkpoint, and an artifact without a proof, have no probes.

        Raises:
            ParityError, DigestError: the outputs differ from those of the proof, or the file was
                changed.
            ConfigError: 16-bit images have other levels, for which sources are already open.
            Others as of ``Detector``.
        """
        always = replace(self, options=replace(self.options, check_payload=True))
        model = always.open(source)
        try:
            manifest = model.manifest
            if manifest.input.levels != instead_of.input.levels:
                raise ConfigError(
                    f"{source} has levels {manifest.input.levels} for 16-bit images, expected "
                    f"{instead_of.input.levels} as those of the model in use: open a new Detector"
                )
            if manifest.probes or manifest.parity.get("status") == "passed":
                repeat_probes(source, manifest, model.session)
            for _ in range(WARMUP_RUNS):
                model.inference(model.session, [(model.grey(), "bgr")], model.criteria)
        except BaseException:
            model.session.close()
            raise
        return model


def open_model(
    source: str | Path,
    backend: str,
    options: SessionOptions,
    imgsz: Size | None,
    names: Sequence[str] | None,
) -> tuple[Session, Manifest]:
    """Open a session for an artifact, or a torch session for a checkpoint or a variant's name.

    Arguments and errors are those of ``Detector``.
    """
    size = None if imgsz is None else pair(imgsz)
    if not needs_torch(source):
        artifact = registry.load_any(source, backend, names=names, imgsz=size)
        return registry.open_session(artifact, options, backend), artifact.manifest
    if backend != "auto" or options.provider_options:
        raise ConfigError(
            f"{source} is run by torch: omit backend and provider_options, which apply to artifacts"
        )
    if names is not None:
        raise ConfigError(
            f"names were given, but {source} has its own: omit names (--names), which are for "
            "files of other exporters"
        )
    # import_module, because detect must not depend on nn (see tests/test_structure.py).
    try:
        eager = import_module("y7edge.nn.eager")
    except ImportError as error:
        raise RuntimeMissing(
            f'{source} is not an exported artifact and needs torch: pip install "y7edge[export]", '
            "or export it with `y7edge export` on a machine with torch"
        ) from error
    session = eager.open(source, options, size)
    return session, session.manifest


def needs_torch(source: str | Path) -> bool:
    """Return whether a model is a checkpoint or a variant's name.

    Raises:
        ConfigError: there is neither a file nor a variant of this name.
    """
    path = Path(source)
    if not is_file(path) and path.name == str(source) and not path.suffix:
        variants.get(path.name)
        return True
    return path.suffix.lower() in SUFFIXES


def warn_if_unverified(source: str | Path, manifest: Manifest, stacklevel: int) -> None:
    """Warn if an artifact has no proof."""
    if manifest.parity.get("status") != "unverified":
        return
    reason = manifest.parity.get("reason", "no reason given")
    way_out = "run `y7edge selftest` or `y7edge verify` on a machine with its engine"
    if reason == REASON:
        way_out = "`y7edge info` prints what is assumed about it"
    warnings.warn(
        f"{source} was exported without a proof ({reason}): {way_out}", stacklevel=stacklevel + 1
    )
