targets: dict[str, object]
