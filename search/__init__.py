"""Find caching and pruning strategies: evaluation, NSGA-II, Ray workers, ledger, MLflow."""
