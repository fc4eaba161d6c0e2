import infrastructure  # noqa: F401  # before anything that imports the CDK: it silences jsii's banner
