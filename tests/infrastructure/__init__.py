import aggregation_worker_cdk  # noqa: F401  # before anything that imports the CDK: it silences jsii's banner
