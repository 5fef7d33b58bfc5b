"""Energy of a callable: meters for GPUs (NVML) and processors (RAPL), and the protocol that all of them follow."""
