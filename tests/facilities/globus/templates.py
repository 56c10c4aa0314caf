"""Configuration of endpoint agents for tests: no network in ``worker_init``, quoted defaults, idle children end."""

from __future__ import annotations

# The agent inserts the strings of a submitter as JSON with quotes; so a default needs its own quotes.
HEARTBEAT_S = 5  # the shortest that an agent accepts

CORE = f"""\
display_name: {{name}}
local_compute_services: true
heartbeat_period: {HEARTBEAT_S}
"""

ENGINE = f"""\
heartbeat_period: {HEARTBEAT_S}
idle_heartbeats_soft: {{{{ idle_heartbeats|default(60) }}}}
idle_heartbeats_hard: {{{{ idle_heartbeats_hard|default(720) }}}}
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
  max_workers_per_node: {{{{ workers_per_node|default(1) }}}}
  max_retries_on_system_failure: {{{{ system_retries|default(0) }}}}
  heartbeat_period: 5
  heartbeat_threshold: 15
  job_status_kwargs:
    max_idletime: 3600
    strategy_period: 1
"""

LOCAL_TEMPLATE = f"""\
{ENGINE}\
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 1
    max_blocks: 1
    worker_init: {{{{ worker_init|default("true"|tojson) }}}}
"""

SLURM_TEMPLATE = f"""\
{ENGINE}\
  provider:
    type: SlurmProvider
    partition: {{{{ partition|default("debug"|tojson) }}}}
    account: {{{{ account|default(none|tojson) }}}}
    qos: {{{{ qos|default(none|tojson) }}}}
    walltime: {{{{ walltime|default("00:10:00"|tojson) }}}}
    nodes_per_block: {{{{ nodes_per_block|default(1) }}}}
    init_blocks: 0
    min_blocks: 0
    max_blocks: {{{{ max_blocks|default(1) }}}}
    exclusive: false
    scheduler_options: {{{{ scheduler_options|default(""|tojson) }}}}
    worker_init: {{{{ worker_init|default("true"|tojson) }}}}
    launcher:
      type: {{{{ launcher|default("SingleNodeLauncher") }}}}
"""
