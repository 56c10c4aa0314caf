"""Tests of the classes of refused submissions, with the sentences of sbatch and qsub."""

from __future__ import annotations

import pytest

from site_configs.library.schedulers.refusals import classify

POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size"
    " and/or time limits)"
)
# Slurm: slurm_errno.c and job_reasons.c; PBS: pbs_messages.c; the rest as named
SENTENCES = {
    "limit": [
        "qsub: would exceed queue generic's per-user limit",
        "qsub: would exceed complex's per-project limit of jobs in 'Q' state",
        "qsub: would exceed per-project limit on resource nodect in queue small",
        "qsub: would exceed user me's limit on resource ncpus in complex",
        "qsub: Maximum number of jobs already in queue capacity",
        "qsub: Maximum number of jobs for user me already in queue debug",
        "qsub: Maximum number of jobs in 'Q' state for project x already in complex",
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit {POLICY}",
        f"sbatch: error: AssocMaxSubmitJobLimit {POLICY}",
        f"sbatch: error: QOSGrpSubmitJobsLimit {POLICY}",
        f"sbatch: error: QOSMaxNodePerUserLimit {POLICY}",
        "sbatch: error: MaxSubmitJobsPerUser limit reached",
        "sbatch: error: Batch job submission failed: MaxJobCount limit reached",
        POLICY,
    ],
    "unavailable": [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)",
        "sbatch: error: Batch job submission failed: Requested reservation not usable now",
        "sbatch: error: slurm_submit_batch_job: Rate limit exceeded, please retry momentarily",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
        "sbatch: error: System is down for maintenance",
        "Connection refused qsub: cannot connect to server pbs-01 (errno=111)",
        "qsub: Queue is not enabled",
        "qsub: Request not allowed: Server shutting down",
        "qsub: Could not contact Scheduler",
        "qsub did not answer in 60 s",
        "the scheduler does not answer whether it accepted this earlier job: cf-1",
        # NERSC, page on job submission errors
        "sbatch: error: Your account has exceeded a file system quota and is not permitted to submit batch jobs.",
        "sbatch: error: Batch job submission failed: Unspecified error munge decode failed: Expired credential",
    ],
    "allocation": [
        f"sbatch: error: AssocGrpCPUMinutesLimit {POLICY}",
        f"sbatch: error: AssocGrpBillingMinutes {POLICY}",
        f"sbatch: error: QOSGrpCPUMinutesLimit {POLICY}",
        "sbatch: error: Requested account has breached requested QOS usage threshold",
        "qsub: Request rejected. Reason: No active allocation found for project ABC and resource polaris",
        "qsub: project ABC has a negative balance",
        "sbatch: error: Project m1234 has insufficient balance",
        "sbatch: error: Allocation of account abc123 has expired",
        "sbatch: error: Account abc123 is expired",
        "sbatch: error: Not enough node-hours left",
        "sbatch: error: Job cost estimated at 384.00 node hours exceeds the remaining balance of 12.00",
        "qsub: project ABC has no node-hours left",
        "sbatch: error: The account abc123_g has ended on 2026-09-30",
    ],
    "request": [
        "qsub: Unknown queue",
        "qsub: Unknown resource Resource_List.nosuchres",
        "qsub: Job violates queue and/or server resource limits",
        "qsub: Invalid Account",
        "qsub: Access to queue is denied",
        "qsub: Unauthorized Request",
        "qsub: Bad UID for job execution",
        "qsub: illegal -l value",
        "usage: qsub [-a date_time] [-A account_string]",
        "qsub: Unknown Reservation Id",
        "qsub: script file:: No such file or directory",
        "sbatch: error: invalid partition specified: gpux",
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
        "sbatch: error: Batch job submission failed: Invalid feature specification",
        "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        "sbatch: error: Batch job submission failed: Node count specification invalid",
        "sbatch: error: Batch job submission failed: More processors requested than permitted",
        "sbatch: error: Batch job submission failed: User's group not permitted to use this partition",
        "sbatch: error: Batch job submission failed: Requested reservation is invalid",
        "sbatch: error: Batch job submission failed: Access denied to requested reservation",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        f"sbatch: error: QOSMaxWallDurationPerJobLimit {POLICY}",
        f"sbatch: error: QOSMaxNodePerJobLimit {POLICY}",
        f"sbatch: error: QOSMinGRES {POLICY}",
        f"sbatch: error: AssocMaxWallDurationPerJobLimit {POLICY}",
        "sbatch: unrecognized option '--gpu-per-node=4'",
        # NERSC
        "sbatch: error: Job request does not match any supported policy. Batch job submission failed: Unspecified",
        "sbatch cannot be run: No such file or directory",
    ],
    "": [
        "qsub: Job rejected by all possible destinations",
        "no job id in the answer",
        "sbatch: error: Unspecified error",
    ],
}


@pytest.mark.parametrize(
    ("cause", "sentence"), [(cause, sentence) for cause, sentences in SENTENCES.items() for sentence in sentences]
)
def test_sentences_of_schedulers(cause: str, sentence: str) -> None:
    refusal = classify(sentence)
    assert refusal.cause == cause and bool(refusal.meaning) == bool(cause)
