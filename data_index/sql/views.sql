-- Views and macros of the joined connection that stand on other views. The base views (runs, segments, files,
-- checkpoints, batches, instances, pieces, documents, metrics, consumed …) are made per run in store.py; a
-- view with no rows yet is an empty table with its columns. Each statement begins a line with CREATE and ends one with a
-- semicolon (data_index/view_catalog.py takes them apart).

-- Pieces of documents inside instances: tokens start .. stop (end exclusive) of the instance. Instances cut from files
-- follow from a document's place by arithmetic, so that one document's are found without looking at others; those that
-- are put together from pieces are found piece by piece.
CREATE VIEW spans AS
WITH cut AS (
    SELECT d.run, d.document_id, d.start, d."end", f.first_instance, f.first_token, r.sequence_length AS length,
           unnest(range(f.first_instance + greatest(d.start - f.first_token, 0) // length,
                        least(f.first_instance + (d."end" - 1 - f.first_token) // length + 1,
                              f.first_instance + f.num_instances))) AS instance
    FROM documents d JOIN files f ON f.run = d.run AND f.file = d.file JOIN runs r ON r.run = d.run
    WHERE d."end" > greatest(d.start, f.first_token))
SELECT c.run, c.instance, c.document_id,
       greatest(c.start - c.first_token - (c.instance - c.first_instance) * c.length, 0) AS start,
       least(c."end" - c.first_token - (c.instance - c.first_instance) * c.length, c.length) AS stop
FROM cut c ANTI JOIN pieces p ON p.run = c.run AND p.instance = c.instance
UNION ALL
SELECT p.run, p.instance, d.document_id, p.first_token + greatest(d.start - p.start, 0) AS start,
       p.first_token + least(d."end", p.stop) - p.start AS stop
FROM pieces p JOIN documents d
  ON d.run = p.run AND d.file = p.file AND d.start < p.stop AND d."end" > p.start AND d."end" > d.start;

CREATE VIEW forks AS SELECT * FROM runs WHERE parent IS NOT NULL;

-- What the trainer's record says and what was learned since, each once.
CREATE VIEW tags AS
SELECT run, document_id, unnest(tags) AS tag FROM documents
UNION
SELECT run, document_id, tag FROM learned_tags;

CREATE MACRO batch(r, s) AS TABLE SELECT * FROM batches WHERE run = r AND step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(r, i) AS TABLE SELECT * FROM instances WHERE run = r AND instance = i ORDER BY step;

-- What left the loss: by an edit of the plan (its own reasons), and by the trainer, once `exposures` has gone through the
-- run: instance_filter, label_mask, hidden_token, padding.
CREATE VIEW masks AS FROM edit_masks UNION ALL BY NAME FROM hidden;

-- Steps and data that changed no weight. `skipped`: the trainer consumed the batches and computed nothing. `withheld`: it
-- computed gradients and threw them away. `unread`: positions that were passed over before the step. `logged`: the
-- trainer's log says that it skipped the update.
CREATE VIEW skips AS
FROM passed_over
UNION ALL BY NAME
SELECT m.run, m.step AS first_step, m.step AS last_step, m.attempt::BIGINT AS attempt, 'logged' AS kind, s.epoch,
       s.first_position + (m.step - s.first_step) * s.instances_per_batch AS first_position,
       s.instances_per_batch AS num_instances
FROM metrics m LEFT JOIN segments s
  ON s.run = m.run AND s.attempt = m.attempt AND m.step BETWEEN s.first_step AND s.first_step + s.num_steps - 1
WHERE m.name = 'skipped' AND m.value > 0;

-- Counts up to the last recorded step that is not after step s.
CREATE MACRO exposures(r, s) AS TABLE
SELECT * FROM exposures
WHERE run = r AND step = (SELECT max(step) FROM exposures WHERE run = r AND step <= s) ORDER BY token_id;

-- Metrics of checkpoints, measured here and published, under one name each. A published evaluation states the standard
-- error over a task's instances: 1.96 of them are 95 % of a normal distribution.
CREATE VIEW probes AS
SELECT *, NULL::VARCHAR AS source FROM measured_probes
UNION ALL BY NAME
SELECT e.run, e.step, coalesce(c.tokens, t.tokens) AS tokens, 'task:' || e.task AS probe,
       e.metric || CASE WHEN e.num_fewshot > 0 THEN ', ' || e.num_fewshot || '-shot' ELSE '' END AS metric, e.value,
       e.value - 1.96 * e.stderr AS low, e.value + 1.96 * e.stderr AS high, e.unit, e.source
FROM evaluations e
LEFT JOIN (SELECT run, step, max(tokens) AS tokens FROM checkpoints GROUP BY ALL) c ON c.run = e.run AND c.step = e.step
LEFT JOIN (SELECT run, step, max(value)::BIGINT AS tokens FROM metrics WHERE name = 'tokens' GROUP BY ALL) t
  ON t.run = e.run AND t.step = e.step;
