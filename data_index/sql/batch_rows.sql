-- Rows of `batch`: what steps first+1 .. last read, with the documents in each row and the tokens that edits hide.
WITH b AS (
    SELECT * FROM batches
    WHERE step > $first AND step <= $last AND {kept} AND ($instance IS NULL OR instance = $instance)),
-- Where the rows' tokens lie.
places AS (
    SELECT DISTINCT b.instance, b.file, 0 AS first_token, b."offset" AS start, b."offset" + b.num_tokens AS stop
    FROM b ANTI JOIN pieces p ON p.instance = b.instance
    UNION ALL
    SELECT instance, file, first_token, start, stop FROM pieces SEMI JOIN b USING (instance)),
-- Documents are sought by blocks of tokens: a file has many, a block few.
near AS (
    SELECT *, unnest(range(start // {block_tokens}, (stop - 1) // {block_tokens} + 1)) AS block FROM places),
there AS (
    SELECT document_id, file, start, "end",
           unnest(range(start // {block_tokens}, ("end" - 1) // {block_tokens} + 1)) AS block
    FROM documents WHERE "end" > start AND file IN (SELECT file FROM places)),
held AS (
    SELECT DISTINCT n.instance, n.first_token + greatest(t.start - n.start, 0) AS start, t.document_id
    FROM near n JOIN there t USING (file, block) WHERE t.start < n.stop AND t."end" > n.start),
documents_of AS (
    SELECT instance, list(document_id ORDER BY start) AS document_ids FROM held GROUP BY instance),
hidden AS (
    SELECT step, attempt, position, sum(stop - start)::BIGINT AS masked FROM edit_masks GROUP BY ALL)
SELECT b.step, b.attempt, b.position, b.instance, b.file, b."offset", b.num_tokens,
       coalesce(d.document_ids, []) AS document_ids, coalesce(h.masked, 0) AS masked, b.epoch
FROM b LEFT JOIN documents_of d USING (instance)
LEFT JOIN hidden h ON h.step = b.step AND h.attempt = b.attempt AND h.position = b.position
ORDER BY b.step, b.attempt, b.position
