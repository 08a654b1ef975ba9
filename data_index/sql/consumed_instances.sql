SELECT {epoch}::INTEGER AS epoch, p.instance,
       s.first_step + (p.position - s.first_position) // s.instances_per_batch AS step,
       coalesce(s.attempt, 1)::INTEGER AS attempt, CASE WHEN s.attempt IS NOT NULL THEN p.position END AS position
FROM (SELECT rowid AS instance, position::BIGINT AS position FROM {index}inverse_{epoch}) p
LEFT JOIN (FROM {index}segments WHERE epoch = {epoch}) s
  ON p.position >= s.first_position AND p.position < s.first_position + s.num_steps * s.instances_per_batch
UNION ALL
SELECT {epoch}::INTEGER, p.instance, s.first_step + (p.position - s.first_position) // s.instances_per_batch,
       s.attempt::INTEGER, p.position
FROM {index}inverse_more_{epoch} p
JOIN (FROM {index}segments WHERE epoch = {epoch}) s
  ON p.position >= s.first_position AND p.position < s.first_position + s.num_steps * s.instances_per_batch
