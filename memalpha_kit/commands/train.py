"""`memalpha train`: GRPO on a real model, from built data to an exported folder.

    memalpha data merge --recipe balanced --out data/memalpha
    memalpha plan --profile gpu
    memalpha train --profile gpu --data data/memalpha --out runs/gpu/grpo
    memalpha train --profile gpu --data data/memalpha --out runs/gpu/grpo --resume

Several nodes, the published run (written from the libraries' sources; not run on GPUs). One server
generates; its weights come from the trainers, over a port (51216) that they must reach:

    VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B --port 8000 \\
        --weight-transfer-config '{"backend":"nccl"}' \\
        --logprobs-mode processed_logprobs --max-logprobs -1

and on each of the four nodes of eight cards, N from 0 to 3, with the reader's QWEN_URL and
QWEN_MODEL_NAME set:

    accelerate launch --num_machines 4 --num_processes 32 --machine_rank N \\
        --main_process_ip FIRST_NODE --main_process_port 29500 --mixed_precision bf16 \\
        --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \\
        --fsdp_state_dict_type FULL_STATE_DICT \\
        --module memalpha_kit train --profile paper --data data/memalpha --out runs/paper/grpo \\
        --set model.vllm_server_url=http://SERVER:8000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memalpha_kit.commands import add_profile_arguments, profile_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `memalpha train`."""
    add_profile_arguments(parser, default="gpu")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="data sets whose training parts are trained on (`memalpha data build`, `merge`)",
    )
    parser.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="data sets whose test parts choose the best policy (default: those of --data)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="folder of the run and its export"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in RUN"
    )


def main(args: argparse.Namespace) -> int:
    """0 after the export was loaded again and compared."""
    from memalpha_kit.training.real import train

    train(profile_of(args), args.data, args.out, args.validation, args.resume)
    return 0
