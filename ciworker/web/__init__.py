"""HTTP: writes what people want into the store, shows what came of it; knows no engine."""
