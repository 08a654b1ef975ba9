from replay.schedule import Schedule

COSINE = Schedule(kind="cosine_with_warmup", warmup_steps=5, max_steps=40)


def test_the_first_step_uses_one_and_not_zero() -> None:
    assert COSINE.learning_rate(0.003, 1) == 0.0006000000000000001


def test_known_rates_of_a_real_run() -> None:
    """Logged by OLMo-core 3.0.0 (tests/fixtures/olmo-core/main/metrics.jsonl), bit for bit."""
    logged = {24: "0x1.81087fb9ad4d8p-10", 25: "0x1.61c9e76e0e332p-10"}

    for step in (24, 25):
        assert COSINE.learning_rate(0.003, step) == float.fromhex(logged[step])


def test_warm_up_ends_at_the_base_rate_and_decay_at_a_tenth() -> None:
    assert COSINE.learning_rate(1.0, 5) == 1.0
    assert COSINE.learning_rate(1.0, 40) == COSINE.learning_rate(1.0, 1000) == 0.1


def test_constant_stays() -> None:
    schedule = Schedule(kind="constant_with_warmup", warmup_steps=2, max_steps=10)

    assert [schedule.learning_rate(2.0, step) for step in (1, 2, 9, 99)] == [1.0, 2.0, 2.0, 2.0]
