"""The Docker engine as ciworker sees it; the only room that imports aiodocker."""
