"""What several tests share: a tiny model, the independent reference, and processes to run, stop and kill."""
