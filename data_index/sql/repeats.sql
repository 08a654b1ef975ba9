-- Texts that steps of one run read more than once. Stands on hashes and readings, of documents or of instances,
-- and on near(sha256, "group", similarity): texts that are nearly the same as others.

-- Every reading of a text that is long enough, with the group of its text. Texts with one hash are one text, wherever they
-- lie; tokens are counted from its start.
CREATE TEMP TABLE read AS
SELECT r.id, h.sha256, coalesce(n."group", h.sha256) AS "group", n.similarity, r.step, r.attempt, r.position, r.instance,
       r.first, least(r.stop, h.num_tokens) AS stop
FROM readings r JOIN hashes h ON h.id = r.id LEFT JOIN near n ON n.sha256 = h.sha256
WHERE h.num_tokens >= {min_tokens} AND r.first < least(r.stop, h.num_tokens);

-- `again`: how many of a reading's tokens lie in readings before it, by place in the text; `repeated`: any of them lies in
-- another reading. The end of the furthest reading before, and the start of the next, tell both.
CREATE TEMP TABLE repeated AS
SELECT *, greatest(least(stop, coalesce(max(stop) OVER earlier, 0)) - first, 0) AS again,
       again > 0 OR coalesce(lead(first) OVER text < stop, false) AS repeated
FROM read
WINDOW text AS (PARTITION BY sha256 ORDER BY first, step, attempt, position),
       earlier AS (text ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING);

-- Groups by the tokens in them that were read again, most first: all that was read but once the longest of its texts.
CREATE TEMP TABLE groups AS
WITH texts_read AS (
    SELECT "group", sha256, min(id) AS id, sum(stop - first) AS tokens, tokens - sum(again) AS once,
           bool_or(repeated) AS repeated
    FROM repeated GROUP BY ALL)
SELECT "group", count(*) > 1 AS near, row_number() OVER (ORDER BY sum(tokens) - max(once) DESC, min(id)) AS number
FROM texts_read GROUP BY "group" HAVING near OR bool_or(repeated);
