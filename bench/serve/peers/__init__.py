"""The peers: what of each is installed, how it is started for two cores, what its requests and answers look like."""
