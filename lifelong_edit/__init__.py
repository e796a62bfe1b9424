"""Keep a deployed language model's knowledge up to date, for years, without retraining it."""
