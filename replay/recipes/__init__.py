"""Readers of the trainers' own configs, one trainer a file: `recipe_from(config, …) -> Recipe`."""
