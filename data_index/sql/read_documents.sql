-- What steps of one run read of its documents, for repeats.sql: tokens first .. stop of document `id` at a position.
-- {taken} is a condition on step and attempt, {length} the tokens of a row that the model reads. A document of another file
-- than the row's begins in the row.
SELECT s.document_id AS id, b.step, b.attempt, b.position, b.instance,
       CASE WHEN p.instance IS NOT NULL THEN p.start + s.start - p.first_token - d.start
            WHEN d.file = b.file THEN b."offset" + s.start - d.start
            ELSE 0 END AS first,
       first + least(s.stop, {length}) - s.start AS stop
FROM batches b
JOIN spans s ON s.instance = b.instance AND s.start < {length}
JOIN documents d ON d.document_id = s.document_id
LEFT JOIN pieces p ON p.instance = s.instance AND p.file = d.file
    AND p.first_token <= s.start AND s.start < p.first_token + p.stop - p.start
WHERE {taken}
