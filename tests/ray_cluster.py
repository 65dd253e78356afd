"""A Ray cluster of two nodes of one CPU each, on loopback; the second one dies on request.

    python ray_cluster.py DIRECTORY

It prints the cluster's address. The word `kill` on standard input kills the second node; its end stops the cluster.
"""

import os
import sys

OWN_ADDRESS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes stay on 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_memory_monitor_refresh_ms": "0",  # it kills workers when others fill the machine's memory
    "RAY_worker_niceness": "0",  # 15 by default: behind everything else on a busy machine
}
"""Variables that must be set before Ray is imported, in the cluster and in what connects to it."""


def main(directory: str) -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 96 * 2**20, "node_ip_address": "127.0.0.1"}
    head = {**node, "include_dashboard": False, "temp_dir": directory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**node)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    os.environ.update(OWN_ADDRESS)
    main(sys.argv[1])
