#!/bin/sh
# Makes the fixtures of tests/data/old_main with the code at commit d7a30ac, before it was reorganised.
#
# That code and its .venv stand in ../rl_research. Run it in an empty folder with a neutral name,
# /home/lab/project, in namespaces (unshare --uts --mount) with the host name `lab` and a boot_id of zeros,
# with HOME, TMPDIR, PREFECT_HOME and WANDB_CONFIG_DIR below /home/lab: these names end up in the files.
# A sitecustomize.py on PYTHONPATH lets os.uname() tell of Linux 6.8.0.
set -eu
code=../rl_research
python=$code/.venv/bin/python
research="$python -m rl_research"
alone="env PREFECT_SERVER_EPHEMERAL_ENABLED=false"   # no flow run, no embedded server

any="video.enabled=false algorithm.params.policy_kwargs.net_arch=[8] evaluation.episodes=2"
any="$any evaluation.final_episodes=4 checkpoint.every=32 checkpoint.keep_last=1"
cartpole="$any experiment.log_every=16 env.max_episode_steps=200"
cartpole="$cartpole algorithm.params.n_steps=16 algorithm.params.batch_size=16"
ppo="run_id=ppo $cartpole evaluation.every=32 checkpoint.keep_best=0 experiment.total_timesteps=160"
sac="run_id=sac $any algorithm=sac env=pendulum env.normalize=true env.max_episode_steps=40"
sac="$sac algorithm.params.learning_starts=8 algorithm.params.batch_size=8 algorithm.params.buffer_size=300"
sac="$sac experiment.log_every=8 evaluation.every=0 experiment.total_timesteps=128"
stored="run_id=stored experiment.seed=1 $cartpole evaluation.every=32"
small="$cartpole evaluation.every=0 experiment.total_timesteps=32 wandb=disabled"

# 1, 2: interrupted runs. ppo gets SIGTERM and commits (interrupted); sac gets SIGKILL (running).
cat > interrupt.py <<'P'
import os, signal, sys, time
from rl_research import stages
from rl_research.config import load_config
from rl_research.errors import Interrupted
from rl_research.run import open_run
from rl_research.uploads.queue import uploads_of

name, at, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
config, sent = load_config(words), False

def signalled(step, total):
    global sent
    if step >= at and not sent:
        sent = True
        time.sleep(1.5)  # W&B's log is flushed every second
        os.kill(os.getpid(), getattr(signal, name))

try:
    with open_run(config, words) as run, uploads_of(run) as uploads:
        stages.train(run, signalled, uploads)
except Interrupted as stopped:
    sys.exit(stopped.exit_code)
P
$python interrupt.py SIGTERM 80 $ppo || test $? = 75
$python interrupt.py SIGKILL 84 $sac || test $? = 137
mkdir twins
(cd twins && $alone ../$research train $ppo && $alone ../$research train $sac)

# 3: finished, with a flow run of an embedded Prefect server. 4: finished and synced.
$research train run_id=done $cartpole evaluation.every=0 experiment.total_timesteps=64
$alone $research train run_id=synced $cartpole evaluation.every=0 experiment.total_timesteps=32
mkfifo stop
$python $code/tests/wandb_server.py --port 18080 < stop > url &
exec 3> stop
until grep -q http url; do sleep 0.2; done
WANDB_BASE_URL=http://127.0.0.1:18080 WANDB_API_KEY=0123456789012345678901234567890123456789 \
    $research sync runs/synced
exec 3>&-
wait

# 5: a store without the run's folder. A twin goes on from a copy of it, with a longer budget.
$alone $research train $stored experiment.total_timesteps=96 storage.url=file://$PWD/store
mv runs/stored twins/first
cp -r store twins/store
(cd twins && $alone ../$research train $stored experiment.total_timesteps=160 storage.url=file://$PWD/store)

# 6: a study; its members are reduced to what a second call looks at.
$alone $research study small $small --seeds 0,1 \
    --setting algorithm.params.gamma=0.9 --setting algorithm.params.gamma=0.99
rm -r runs/small-*/checkpoints runs/small-*/report.html runs/small-*/metrics.md

# 8: bits of a published experiment.
published="experiment=cartpole_ppo experiment.total_timesteps=2048 evaluation.enabled=false"
published="$published video.enabled=false wandb=disabled"
(cd twins && $alone ../$research train run_id=published $published)

PYTHONPATH="${PYTHONPATH:-}:$code/tests" $python - "$ppo" "$sac" "$stored" "$small" "$published" <<'P'
import json, platform, re, sys
from pathlib import Path
import numpy, stable_baselines3, torch
from helpers import outcome, record_of, wandb_rows

def read(path):
    return json.loads(Path(path).read_text())

def whole(run_id, words):
    run = Path("twins/runs", run_id)
    return {"words": words.split(), **outcome(run), "wandb_steps": [s for s, _ in wandb_rows(run)]}

def brief(run):
    run = Path(run)
    names = ("parameters_sha256", "global_step", "status")
    return {**{n: record_of(run)[n] for n in names}, "scores": read(run / "scores.json")["returns"]}

ppo, sac, stored, small, published = sys.argv[1:]
store = Path("store/stored/checkpoints")
manifests = {p.parent.name: read(p) for p in sorted(store.glob("step-*/manifest.json"))}
means = {name: m["scores"]["mean"] for name, m in manifests.items()}
server = {"base_url": "http://127.0.0.1:18080", "api_key": "0123456789" * 4, "entity": "tester"}
study, members = read("studies/small/study.json"), sorted(Path("runs").glob("small-*"))
found = {
    "ppo": whole("ppo", ppo),
    "sac": whole("sac", sac),
    "done": brief("runs/done"),
    "synced": {
        "server": server,
        "ledger": read("runs/synced/wandb/sync-synced.json"),
        **brief("runs/synced"),
    },
    "stored": {
        "run_id": "stored",
        "address": record_of(Path("twins/first"))["checkpoint"],
        "names": list(manifests),
        "best": max(means, key=means.get),
        "means": means,
        "parameters_sha256": manifests[max(manifests)]["parameters_sha256"],
        "final_scores": manifests[max(manifests)]["final_scores"],
        "scores": read("twins/first/scores.json")["returns"],
        "words": [*stored.split(), "experiment.total_timesteps=96"],
        "longer": whole("stored", f"{stored} experiment.total_timesteps=160"),
    },
    "study": {
        "name": "small",
        "overrides": small.split(),
        "seeds": [0, 1],
        "settings": [["algorithm.params.gamma=0.9"], ["algorithm.params.gamma=0.99"]],
        "table": study,
        "parameters_sha256": {m.name: record_of(m)["parameters_sha256"] for m in members},
    },
    "cartpole_ppo_2048": {
        "words": published.split(),
        "parameters_sha256": record_of(Path("twins/runs/published"))["parameters_sha256"],
    },
    "made_on": {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "machine": platform.machine(),
        "cpu": re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1],
    },
}
Path("expected.json").write_text(json.dumps(found, indent=1) + "\n")
P

# What nothing reads: W&B's debug logs and its links to the newest segment.
rm -r runs/*/wandb/offline-run-*/logs runs/synced/report.html stop url interrupt.py
find runs -type l -delete
find . -depth -type d -empty -delete
# runs, store, studies and expected.json are the fixtures; twins is not kept.
