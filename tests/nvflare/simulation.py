"""A job in NVFlare's simulator: `python simulation.py FOLDER robust|mean ROUNDS` prints the final model."""

import json
import pathlib
import sys

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe.sim_env import SimEnv

from varangian.nvflare import Robust, use_installed


def main(folder, rule, rounds):
    robust = Robust("nnm+trimmed_mean", f=1, log=f"{folder}/rounds.jsonl") if rule == "robust" else None
    recipe = NumpyFedAvgRecipe(
        name="job",
        model=[[3.0, -2.0], [0.0, 5.0]],
        min_clients=5,
        num_rounds=int(rounds),
        train_script=str(pathlib.Path(__file__).with_name("site.py")),
        aggregator=robust,
    )
    use_installed(recipe)
    run = recipe.execute(SimEnv(num_clients=5, workspace_root=folder))
    (path,) = pathlib.Path(run.get_result()).rglob("server.npy")
    print("model", json.dumps(np.load(path).tolist()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
