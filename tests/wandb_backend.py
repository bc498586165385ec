"""What our double of a W&B server knows, and how it answers each GraphQL operation.

File streams follow W&B's own test server: a line has its place by offset, so a chunk that is sent twice
is stored once, and a client that begins after ``historyLineCount`` appends.
"""

from __future__ import annotations

import base64
import datetime
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

HISTORY, EVENTS, SUMMARY, OUTPUT = ("wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log")
PENDING, COMMITTED, DELETED = "PENDING", "COMMITTED", "DELETED"


class Refused(Exception):
    """Raised for a request that a real server refuses; *status* is HTTP's."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass
class ServedRun:
    """One run as the server has it."""

    entity: str
    project: str
    run_id: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    stream: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)
    artifacts: list[ServedArtifact] = field(default_factory=list)
    used: list[ServedArtifact] = field(default_factory=list)
    exit_code: int | None = None
    state: str = "running"
    upserts: int = 0
    created_at: str = ""
    heartbeat_at: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, one mapping per line, in the order of the lines."""
        return [json.loads(line) for _, line in sorted(self.stream.get(HISTORY, {}).items())]

    @property
    def steps(self) -> list[int]:
        """The `global_step` of every row that has one, repeated where a row is repeated."""
        return [row["global_step"] for row in self.rows if "global_step" in row]

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of each metric."""
        lines = self.stream.get(SUMMARY, {})
        found: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The configuration without W&B's own part."""
        return {
            key: item["value"] if isinstance(item, dict) and "value" in item else item
            for key, item in self.raw_config.items()
            if key != "_wandb"
        }

    @property
    def output(self) -> list[str]:
        """The lines of the console."""
        return [line for _, line in sorted(self.stream.get(OUTPUT, {}).items())]

    @property
    def path(self) -> str:
        """``entity/project/run_id``."""
        return f"{self.entity}/{self.project}/{self.run_id}"

    def count(self, name: str) -> int:
        """How many lines the streamed file *name* has."""
        return max(self.stream.get(name, {}), default=-1) + 1

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Store one request of the file stream."""
        for name, part in (chunk.get("files") or {}).items():
            lines = self.stream.setdefault(name, {})
            for number, line in enumerate(part["content"], part["offset"]):
                lines[number] = line
        self.announced |= set(chunk.get("uploaded") or ())
        self.heartbeat_at = _now()
        if chunk.get("complete"):
            self.exit_code = chunk.get("exitcode")
            self.state = "finished" if self.exit_code == 0 else "failed"


@dataclass
class ServedArtifact:
    """One version of an artifact."""

    id: str
    run: ServedRun
    collection: str
    type: str
    digest: str
    aliases: list[str]
    metadata: dict[str, Any]
    description: str | None = None
    state: str = PENDING
    version: int | None = None
    raw_manifest: bytes | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    created_at: str = ""

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The manifest: name -> digest, size, and ref where the bytes are elsewhere."""
        manifest = json.loads(self.raw_manifest or b"{}")
        found: dict[str, dict[str, Any]] = manifest.get("contents", {})
        return found


class Backend:
    """Runs and artifacts, and the answers to what is asked of them."""

    def __init__(self, entity: str, url: Callable[[], str]):
        self.entity = entity
        self.url = url
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str, str], ServedRun] = {}
        self.artifacts: dict[str, ServedArtifact] = {}
        self.forbidden: set[str] = set()  # "entity" or "entity/project"
        self.root: dict[str, Any] = {
            "viewer": self._viewer(),
            "serverInfo": {
                "features": [],
                "cliVersionInfo": {"min_cli_version": "0.10.0", "max_cli_version": "9.9.9"},
                "latestLocalVersionInfo": None,
            },
            "entity": lambda name=None: self._entity(name or self.entity),
            "organization": lambda name: {"name": name, "featureFlags": []},
            "project": lambda name, entityName=None: self._project(name, entityName),  # noqa: N803
            "model": lambda name, entityName=None: self._project(name, entityName),  # noqa: N803
            "artifact": lambda id: self._artifact(self.artifacts[id]),
            "clientIDMapping": lambda clientID: None,  # noqa: N803
            "upsertBucket": self._upsert_bucket,
            "deleteRun": self._delete_run,
            "createRunFiles": self._create_run_files,
            "markRunFilesUploaded": lambda input: {"success": True},
            "createArtifact": self._create_artifact,
            "createArtifactManifest": lambda input: self._create_manifest(input["artifactID"]),
            "updateArtifactManifest": lambda input: self._create_manifest(
                input["artifactManifestID"].removesuffix("-manifest")
            ),
            "createArtifactFiles": self._create_artifact_files,
            "commitArtifact": self._commit_artifact,
            "updateArtifact": self._update_artifact,
            "useArtifact": self._use_artifact,
            "linkArtifact": lambda input: {"versionIndex": 0},
        }

    # ------------------------------------------------------------ who and where

    def check_access(self, entity: str | None, project: str | None) -> None:
        """Refuse what this key may not write to."""
        entity = entity or self.entity
        if {entity, f"{entity}/{project}"} & self.forbidden:
            raise Refused(f"permission denied: {entity}/{project}", 403)

    def run(self, entity: str | None, project: str, run_id: str) -> ServedRun | None:
        """The run, None if there is none."""
        return self.runs.get((entity or self.entity, project, run_id))

    def known_run(self, entity: str | None, project: str, run_id: str) -> ServedRun:
        """The run; 404."""
        if (run := self.run(entity, project, run_id)) is None:
            raise Refused(f"run {entity}/{project}/{run_id} not found", 404)
        return run

    def _viewer(self) -> dict[str, Any]:
        return {
            "__typename": "User",
            "id": _id("User", self.entity),
            "name": self.entity,
            "username": self.entity,
            "entity": self.entity,
            "email": f"{self.entity}@example.org",
            "admin": False,
            "flags": "{}",
            "teams": {"edges": [{"node": {"name": self.entity}}]},
            "defaultEntity": {"name": self.entity},
        }

    def _entity(self, name: str) -> dict[str, Any]:
        return {"__typename": "Entity", "id": _id("Entity", name), "name": name, "isTeam": False}

    def _project(self, name: str, entity: str | None) -> dict[str, Any]:
        entity = entity or self.entity
        self.check_access(entity, name)
        project = name
        runs = [run for (e, p, _), run in self.runs.items() if (e, p) == (entity, project)]
        return {
            **self._project_facts(entity, project),
            "run": lambda name: self._one_run(entity, project, name),
            "bucket": lambda name, missingOk=False: self._one_run(entity, project, name),  # noqa: N803
            "runCount": lambda filters=None: len(runs),
            "runs": lambda **_: _connection([self._run(run) for run in runs]),
            "artifactType": lambda name: {
                "__typename": "ArtifactType",
                "id": _id("ArtifactType", name),
                "name": name,
                "artifactCollection": lambda name: None,
            },
            "artifact": lambda name, **_: self._named_artifact(entity, project, name),
            "artifactCollectionMembership": lambda name: self._membership(entity, project, name),
        }

    def _project_facts(self, entity: str, name: str) -> dict[str, Any]:
        return {
            "__typename": "Project",
            "id": _id("Project", name),
            "internalId": _id("ProjectInternalId", "1"),
            "name": name,
            "entityName": entity,
            "entity": self._entity(entity),
            "readOnly": False,
        }

    # ------------------------------------------------------------ runs

    def _one_run(self, entity: str, project: str, name: str) -> dict[str, Any] | None:
        run = self.run(entity, project, name)
        return None if run is None else self._run(run)

    def _run(self, run: ServedRun) -> dict[str, Any]:
        rows = run.rows
        committed = [self._artifact(a) for a in run.artifacts if a.state == COMMITTED]
        return {
            "__typename": "Run",
            "id": _id("Run", run.path),
            "projectId": "1",
            "name": run.run_id,
            "displayName": run.display_name,
            "group": run.group,
            "groupName": run.group,
            "jobType": run.job_type,
            "notes": run.notes,
            "description": run.notes,
            "tags": list(run.tags),
            "state": run.state,
            "readOnly": False,
            "createdAt": run.created_at,
            "heartbeatAt": run.heartbeat_at,
            "config": json.dumps(run.raw_config),
            "wandbConfig": lambda keys: json.dumps(
                {"t": run.raw_config.get("_wandb", {}).get("value", {}).get("t", {})}
            ),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyLineCount": run.count(HISTORY),
            "eventsLineCount": run.count(EVENTS),
            "logLineCount": run.count(OUTPUT),
            "historyTail": json.dumps(_tail(run, HISTORY)),
            "eventsTail": json.dumps(_tail(run, EVENTS)),
            "historyKeys": {
                "lastStep": max((row.get("_step", -1) for row in rows), default=-1),
                "keys": {key: {"typeCounts": []} for row in rows for key in row},
            },
            "history": lambda samples=None, minStep=0, maxStep=2**60: [  # noqa: N803
                json.dumps(row) for row in rows if minStep <= row.get("_step", 0) < maxStep
            ],
            "sampledHistory": lambda specs: [
                [row for row in rows if set(json.loads(spec)["keys"]) <= row.keys()] for spec in specs
            ],
            "parquetHistory": lambda liveKeys: {"parquetUrls": [], "liveData": rows},  # noqa: N803
            "user": {"name": self.entity, "username": self.entity},
            "project": self._project_facts(run.entity, run.project),
            "fileCount": len(run.files),
            "files": lambda **_: _connection([self._run_file(run, name) for name in run.files]),
            "outputArtifacts": lambda **_: _connection(committed),
            "inputArtifacts": lambda **_: _connection([self._artifact(a) for a in run.used]),
        }

    def _run_file(self, run: ServedRun, name: str) -> dict[str, Any]:
        url = self._file_url(run, name)
        return {
            "id": _id("File", f"{run.path}/{name}"),
            "name": name,
            "url": lambda upload=False: url,
            "directUrl": url,
            "sizeBytes": len(run.files[name]),
            "mimetype": "application/octet-stream",
            "updatedAt": run.heartbeat_at,
            "md5": "",
        }

    def _file_url(self, run: ServedRun, name: str) -> str:
        return f"{self.url()}/storage/run/{quote(run.path)}/{quote(name)}"

    def _upsert_bucket(self, input: Mapping[str, Any]) -> dict[str, Any]:
        known = {_id("Run", run.path): run for run in self.runs.values()}
        run, inserted = known.get(input.get("id") or ""), False
        if run is None:
            entity, project = input.get("entityName") or self.entity, input.get("modelName")
            self.check_access(entity, project)
            key = (entity, project or "uncategorized", input.get("name") or input.get("id") or "")
            inserted = key not in self.runs
            run = self.runs.setdefault(key, ServedRun(*key, created_at=_now()))
        if inserted:
            run.display_name = f"quiet-run-{len(self.runs)}"
        run.upserts += 1
        _update(run, input)
        return {"bucket": {**self._run(run), "sweepName": None}, "inserted": inserted}

    def _delete_run(self, input: Mapping[str, Any]) -> dict[str, Any]:
        self.runs = {k: run for k, run in self.runs.items() if _id("Run", run.path) != input["id"]}
        return {"clientMutationId": input.get("clientMutationId")}

    def _create_run_files(self, input: Mapping[str, Any]) -> dict[str, Any]:
        run = self.known_run(input["entityName"], input["projectName"], input["runName"])
        return {
            "runID": _id("Run", run.path),
            "uploadHeaders": [],
            "files": [{"name": name, "uploadUrl": self._file_url(run, name)} for name in input["files"]],
        }

    # ------------------------------------------------------------ artifacts

    def _create_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:
        self.check_access(input["entityName"], input["projectName"])
        run = self.known_run(input["entityName"], input["projectName"], input["runName"])
        collection = input["artifactCollectionName"]
        versions = self.versions(run.entity, run.project, collection)
        same = [a for a in versions if a.digest == input["digest"]]
        aliases = [item["alias"] for item in input.get("aliases") or ()]
        if same:  # the bytes are here already: the version gets the aliases
            self._move_aliases(same[-1], aliases)
            return {"artifact": self._artifact(same[-1])}
        artifact = ServedArtifact(
            id=_id("Artifact", str(len(self.artifacts) + 1)),
            run=run,
            collection=collection,
            type=input["artifactTypeName"],
            digest=input["digest"],
            aliases=aliases,
            metadata=json.loads(input.get("metadata") or "{}"),
            description=input.get("description"),
            created_at=_now(),
        )
        self.artifacts[artifact.id] = artifact
        run.artifacts.append(artifact)
        return {"artifact": self._artifact(artifact)}

    def versions(self, entity: str, project: str, collection: str) -> list[ServedArtifact]:
        """The committed versions of *collection*, oldest first."""
        return [
            a
            for a in self.artifacts.values()
            if (a.run.entity, a.run.project, a.collection) == (entity, project, collection) and a.state == COMMITTED
        ]

    def _move_aliases(self, to: ServedArtifact, aliases: list[str]) -> None:
        for other in self.versions(to.run.entity, to.run.project, to.collection):
            other.aliases = [alias for alias in other.aliases if alias not in aliases]
        to.aliases = [*to.aliases, *(alias for alias in aliases if alias not in to.aliases)]

    def _create_manifest(self, artifact_id: str) -> dict[str, Any]:
        artifact = self.artifacts[artifact_id]
        url = f"{self.url()}/storage/manifest/{artifact.id}"
        file = {"id": f"{artifact.id}-file", "uploadUrl": url, "uploadHeaders": []}
        return {"artifactManifest": {"id": f"{artifact.id}-manifest", "file": file}}

    def _create_artifact_files(self, input: Mapping[str, Any]) -> dict[str, Any]:
        nodes = []
        for wanted in input["artifactFiles"]:
            artifact = self.artifacts[wanted["artifactID"]]
            url = f"{self.url()}/storage/artifact/{artifact.id}/{quote(wanted['name'])}"
            nodes.append(
                {
                    "storagePath": f"wandb_artifacts/{artifact.id}/{wanted['name']}",
                    "name": wanted["name"],
                    "uploadUrl": url,
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": artifact.id},
                }
            )
        return {"files": _connection(nodes)}

    def _commit_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[input["artifactID"]]
        if artifact.raw_manifest is None:
            raise Refused(f"artifact {artifact.collection}: no manifest was uploaded")
        local = {name for name, entry in artifact.entries.items() if not entry.get("ref")}
        if missing := local - artifact.files.keys():
            raise Refused(f"artifact {artifact.collection}: missing files {sorted(missing)}")
        if artifact.state != COMMITTED:
            versions = self.versions(artifact.run.entity, artifact.run.project, artifact.collection)
            artifact.version = len(versions)
            aliases, artifact.aliases = artifact.aliases, []
            artifact.state = COMMITTED
            self._move_aliases(artifact, aliases)
        return {"artifact": self._artifact(artifact)}

    def _update_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[input["artifactID"]]
        if input.get("metadata") is not None:
            artifact.metadata = json.loads(input["metadata"])
        if input.get("aliases") is not None:
            self._move_aliases(artifact, [item["alias"] for item in input["aliases"]])
        return {"artifact": self._artifact(artifact)}

    def _use_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[input["artifactID"]]
        run = self.known_run(input["entityName"], input["projectName"], input["runName"])
        run.used.append(artifact)
        return {"artifact": self._artifact(artifact)}

    def _named_artifact(self, entity: str, project: str, name: str) -> dict[str, Any] | None:
        collection, _, alias = name.partition(":")
        for artifact in reversed(self.versions(entity, project, collection)):
            if (alias or "latest") in (*artifact.aliases, f"v{artifact.version}"):
                return self._artifact(artifact)
        return None

    def _membership(self, entity: str, project: str, name: str) -> dict[str, Any] | None:
        artifact = self._named_artifact(entity, project, name)
        if artifact is None:
            return None
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"{artifact['id']}-membership",
            "versionIndex": artifact["versionIndex"],
            "createdAt": artifact["createdAt"],
            "aliases": artifact["aliases"],
            "artifactCollection": artifact["artifactSequence"],
            "artifact": artifact,
        }

    def _artifact(self, artifact: ServedArtifact) -> dict[str, Any]:
        run = artifact.run
        sequence = {
            "__typename": "ArtifactSequence",
            "id": _id("ArtifactSequence", artifact.collection),
            "name": artifact.collection,
            "project": self._project_facts(run.entity, run.project),
            "latestArtifact": lambda: self._latest(artifact),
        }
        manifest = f"{self.url()}/storage/manifest/{artifact.id}"
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "state": artifact.state,
            "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "description": artifact.description,
            "metadata": json.dumps(artifact.metadata),
            "versionIndex": artifact.version,
            "artifactType": {"__typename": "ArtifactType", "name": artifact.type},
            "artifactSequence": sequence,
            "aliases": [
                {
                    "__typename": "ArtifactAlias",
                    "id": f"{artifact.id}-{alias}",
                    "alias": alias,
                    "artifactCollection": sequence,
                }
                for alias in artifact.aliases
            ],
            "tags": [],
            "size": sum(entry.get("size", 0) for entry in artifact.entries.values()),
            "fileCount": len(artifact.entries),
            "commitHash": artifact.id,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "createdAt": artifact.created_at,
            "updatedAt": artifact.created_at,
            "currentManifest": {"file": {"directUrl": manifest}},
            "createdBy": lambda: {"__typename": "Run", **self._run(run)},
        }

    def _latest(self, artifact: ServedArtifact) -> dict[str, Any] | None:
        run = artifact.run
        versions = self.versions(run.entity, run.project, artifact.collection)
        return {"id": versions[-1].id} if versions else None


def _update(run: ServedRun, given: Mapping[str, Any]) -> None:
    names = {
        "displayName": "display_name",
        "groupName": "group",
        "jobType": "job_type",
        "notes": "notes",
        "tags": "tags",
        "state": "state",
    }
    for key, attribute in names.items():
        if given.get(key) is not None:
            setattr(run, attribute, given[key])
    if given.get("config"):
        run.raw_config = json.loads(given["config"])
    if given.get("summaryMetrics"):
        run.stream[SUMMARY] = {0: given["summaryMetrics"]}


def _connection(nodes: list[Any]) -> dict[str, Any]:
    return {
        "totalCount": len(nodes),
        "edges": [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)],
        "pageInfo": {"hasNextPage": False, "endCursor": None},
    }


def _tail(run: ServedRun, name: str) -> list[str]:
    lines = run.stream.get(name, {})
    return [lines[max(lines)]] if lines else []


def _id(kind: str, name: str) -> str:
    return base64.b64encode(f"{kind}:{name}".encode()).decode()


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
