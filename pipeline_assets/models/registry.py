"""The model registry: versions of `<env>.purchase_propensity` in MLflow, and the aliases that point to them.

Belongs here: what a version is, how it is registered, and how it is loaded again. Whatever can be checked
is checked: a model is loaded only if its bytes are those that were registered and all its types are
trusted. `promotion` decides which version may become champion.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import version as installed
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_assets import __version__
from pipeline_assets.failures import PermanentError, is_transient
from pipeline_assets.models.snapshots import Window, feature_frame
from pipeline_assets.models.training import TRUSTED_TYPES
from pipeline_assets.resources.local_files import temporary_folder, tidy_temporary_files

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from sklearn.pipeline import Pipeline

MODEL = "purchase_propensity"
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous_champion", "challenger"
MODEL_FILE = "model.skops"
LOADED = {
    "loader_module": "mlflow.sklearn",
    "model_path": MODEL_FILE,
    "predict_fn": "predict_proba",
    "serialization_format": "skops",
}
"""What a model's file MLmodel says of how MLflow loads it."""
RECORD = "training"
"""The key of the training record in a model's metadata, which is in its file MLmodel."""

REQUIREMENTS = ("mlflow", "scikit-learn", "skops", "numpy", "pandas", "scipy")
"""The packages that scoring needs; given explicitly, as MLflow takes 19 s to infer them."""

DECIDING = ("evaluation", "snapshots", "training")
"""The modules that determine which model given data lead to: features, candidates and the choice of one."""


class RegistryError(PermanentError):
    """A model can't be used: it is missing, was changed, or is made of types that aren't trusted."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, with what was recorded of it when it was registered."""

    name: str
    version: int
    run_id: str
    """The MLflow run that trained it."""
    week: date
    candidate: str
    fingerprint: str
    artifact_hash: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True)
class TrainingRecord:
    """What a training was made of and how its candidates did.

    Stored in the model's own files, so that the artifact hash covers it: in tags or in the run's artifacts
    anybody could claim that the training ended before the holdout began.
    """

    window: Window
    validation: dict[str, dict[str, float]]
    """Candidate -> metric -> mean over the validation snapshots."""
    code_version: str


def model_name(environment: str) -> str:
    """The registered model of an environment."""
    return f"{environment}.{MODEL}"


def fingerprint(training_hash: str, holdout_cutoff: date) -> str:
    """A hash of what a training depends on: data, cutoff of the unseen holdout, code and libraries.

    Equal fingerprints mean equal models, so that a replay needs no new version.
    """
    parts = [training_hash, holdout_cutoff.isoformat(), _code_hash(), *requirements()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _code_hash() -> str:
    code = [Path(__file__).with_name(f"{module}.py") for module in DECIDING]
    return hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()


def requirements() -> list[str]:
    """The packages that a model needs, pinned to the versions that made it."""
    return [f"{name}=={installed(name)}" for name in REQUIREMENTS]


def log_model(pipeline: "Pipeline", training: "pa.Table", record: TrainingRecord) -> str:
    """Store a fitted pipeline, with signature and the record, in the active MLflow run; returns its URI.

    When served, the model returns the probabilities of not buying and of buying.
    """
    import mlflow
    from pydantic import TypeAdapter

    sample = feature_frame(training.slice(0, 100))
    with tidy_temporary_files():
        logged = mlflow.sklearn.log_model(
            pipeline,
            name="model",
            serialization_format="skops",
            skops_trusted_types=list(TRUSTED_TYPES),
            signature=mlflow.models.infer_signature(sample, pipeline.predict_proba(sample)),
            pip_requirements=requirements(),
            pyfunc_predict_fn="predict_proba",
            metadata={RECORD: TypeAdapter(TrainingRecord).dump_python(record, mode="json")},
        )
    uri: str = logged.model_uri
    return uri


def training_record(version: "Registered") -> TrainingRecord:
    """The record of the version's training, read from its own files.

    Raises:
        RegistryError: see `verified_files`; or they have no such record.
    """
    from mlflow.models import Model
    from pydantic import TypeAdapter, ValidationError

    with verified_files(version) as files:
        stored = Model.load(str(files)).metadata or {}
    try:
        return TypeAdapter(TrainingRecord).validate_python(stored.get(RECORD))
    except ValidationError:
        raise RegistryError(
            f"{version}: its files don't say what it was trained on; materialize trained_model again"
        ) from None


def code_version() -> str:
    """The Git commit of this checkout, `-dirty` if files differ from it, or the package's version."""
    git = shutil.which("git")
    if git is None:
        return __version__
    command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or __version__


def register(
    client: "MlflowClient", name: str, model_uri: str, run_id: str, tags: Mapping[str, str]
) -> Registered:
    """Make a logged model a version of `name`, with the hash of its files, alias `challenger`.

    Raises:
        RegistryError: the model has a type that isn't trusted.
    """
    with temporary_folder() as folder:
        files = _download(model_uri, folder)
        check_types(files / MODEL_FILE)
        artifact_hash = hash_files(files)
    _ensure_registered_model(client, name)
    created = client.create_model_version(
        name,
        model_uri,
        run_id,
        # Set at creation, so that no version ever exists without its hash.
        tags={**tags, "artifact_hash": artifact_hash},
        model_id=model_uri.removeprefix("models:/"),
    )
    client.set_registered_model_alias(name, CHALLENGER, created.version)
    return _registered(created)


def copy_version(client: "MlflowClient", source: Registered, name: str) -> Registered:
    """Copy the tested version of one environment to another's model; nothing is trained.

    A version of `name` that has the same artifact already is returned instead.
    """
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get("artifact_hash") == source.artifact_hash:
            return _registered(found)
    with redirect_stderr(StringIO()):  # MLflow reports the copy on stderr
        copied = client.copy_model_version(f"models:/{source.name}/{source.version}", name)
    client.set_registered_model_alias(name, CHALLENGER, copied.version)
    return _registered(copied)


def alias_target(client: "MlflowClient", name: str, alias: str) -> int | None:
    """The number of the version that an alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    # Looking up a missing alias itself gives INVALID_PARAMETER_VALUE, like any other mistake.
    number = model.aliases.get(alias)
    return int(number) if number else None


def by_alias(client: "MlflowClient", name: str, alias: str) -> Registered | None:
    """The version that an alias points to, or None."""
    number = alias_target(client, name, alias)
    return by_version(client, name, number) if number else None


def by_version(client: "MlflowClient", name: str, version: int) -> Registered:
    """A version by its number.

    Raises:
        RegistryError: there is none, or it wasn't registered by this project.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _registered(client.get_model_version(name, str(version)))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(f"{name} has no version {version}") from None
        raise


def by_fingerprint(client: "MlflowClient", name: str, mark: str) -> Registered | None:
    """The newest version with this fingerprint, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{mark}'")
    newest = max(found, key=lambda version: int(version.version), default=None)
    return _registered(newest) if newest else None


@contextmanager
def verified_files(version: Registered) -> Iterator[Path]:
    """A copy of the version's files, verified to be those that were registered.

    Raises:
        RegistryError: they are missing, or their hash differs.
    """
    with temporary_folder() as folder:
        files = _download(f"models:/{version.name}/{version.version}", folder)
        found = hash_files(files)
        if found != version.artifact_hash:
            raise RegistryError(
                f"{version}: its files have hash {found[:12]}, but {version.artifact_hash[:12]} was "
                "registered; they were changed or damaged since. Restore them, or train anew"
            )
        yield files


def load(version: Registered) -> "Pipeline":
    """The pipeline of a version, from files whose hash and types were checked.

    Raises:
        RegistryError: see `verified_files` and `check_types`.
    """
    import skops.io

    with verified_files(version) as files:
        check_types(files / MODEL_FILE)
        return skops.io.load(files / MODEL_FILE, trusted=list(TRUSTED_TYPES))


def check_types(file: Path) -> None:
    """Refuse a model that has types other than skops' own and `TRUSTED_TYPES`, without loading it.

    MLflow's list of trusted types, stored with the model, is ignored: who can change one can change both.

    Raises:
        RegistryError: naming the types; or the file is no skops model.
    """
    import skops.io

    try:
        unknown = set(skops.io.get_untrusted_types(file=file)) - set(TRUSTED_TYPES)
    except Exception as error:  # reading a damaged archive can raise anything
        raise RegistryError(f"{file.name} is no skops model: {error}") from error
    if unknown:
        raise RegistryError(
            f"{file.name} has types that aren't trusted: {', '.join(sorted(unknown))}; if they belong "
            "to the model, name them in training.TRUSTED_TYPES"
        )


def check_loader(files: Path) -> None:
    """Refuse a model that MLflow, which serves it, would not load as the skops file that is checked here.

    The file MLmodel says how: it may as well name a pickle, code of its own or any Python module.

    Raises:
        RegistryError: it says anything but what `log_model` writes.
    """
    from mlflow.models import Model

    flavors = Model.load(str(files)).flavors
    how = {
        name: value
        for name, value in flavors.get("python_function", {}).items()
        if name not in ("env", "python_version")
    }
    how["serialization_format"] = flavors.get("sklearn", {}).get("serialization_format")
    if how != LOADED:
        raise RegistryError(f"MLmodel would have MLflow load other files or code: {how}")


def hash_files(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(_model_files(folder)):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterable[Path]:
    # MLflow adds this file to a download: the name and version under which it was requested.
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "registered_model_meta"
    )


def _download(uri: str, folder: Path) -> Path:
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (OSError, mlflow.MlflowException) as error:
        if is_transient(error):  # not the model's fault: a retry may succeed
            raise
        raise RegistryError(f"the files of {uri} can't be read: {error}") from error


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name, description="The probability that a customer buys again within 28 days."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(version: "ModelVersion") -> Registered:
    tags: dict[str, Any] = version.tags
    try:
        return Registered(
            name=version.name,
            version=int(version.version),
            run_id=str(version.run_id),
            week=date.fromisoformat(tags["week"]),
            candidate=tags["candidate"],
            fingerprint=tags["fingerprint"],
            artifact_hash=tags["artifact_hash"],
        )
    except KeyError as error:
        raise RegistryError(
            f"{version.name} version {version.version} has no tag {error}: it wasn't registered by "
            "trained_model, which alone knows what it was trained on"
        ) from None
