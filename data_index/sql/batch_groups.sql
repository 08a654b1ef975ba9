-- Rows of `batch --by`: what steps first+1 .. last read, by group. {readings} are readings of the run, the stretch's and
-- all earlier ones of its instances among them; {run_share} is the group's share of all that the run read.
WITH readings AS (
    SELECT *, row_number() OVER (PARTITION BY instance ORDER BY step, position) > 1 AS again
    FROM {readings} WHERE {kept}),
pieces AS (
    SELECT {group} AS "group", b.step, b.position, b.again, {tokens} AS tokens FROM readings b {joins}),
whole AS (
    SELECT "group", sum(tokens) AS tokens FROM pieces GROUP BY ALL),
stretch AS (
    SELECT sum(num_tokens) AS tokens FROM readings WHERE step > $first AND step <= $last)
SELECT p."group" AS "{by}", count(DISTINCT (p.step, p.position)) AS instances, sum(p.tokens)::BIGINT AS tokens,
       sum(p.tokens) / (SELECT tokens FROM stretch) AS share, {run_share} AS run_share,
       count(DISTINCT (p.step, p.position)) FILTER (p.again) AS repeats
FROM pieces p JOIN whole w ON w."group" = p."group"
WHERE p.step > $first AND p.step <= $last GROUP BY p."group" ORDER BY tokens DESC, "{by}"
