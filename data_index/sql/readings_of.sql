SELECT {epoch}::INTEGER AS epoch, p.instance,
       s.first_step + (p.position - s.first_position) // s.instances_per_batch AS step,
       s.attempt::INTEGER AS attempt, p.position
FROM (SELECT wanted.instance, blocks.positions[wanted.instance % {block} + 1]::BIGINT AS position
      FROM (SELECT DISTINCT unnest(instances)::BIGINT AS instance) wanted
      JOIN {index}inverse_blocks_{epoch} blocks ON blocks.rowid = wanted.instance // {block}
      UNION ALL
      SELECT instance, position FROM {index}inverse_more_{epoch} WHERE list_contains(instances, instance)) p
JOIN (FROM {index}segments WHERE epoch = {epoch}) s
  ON p.position >= s.first_position AND p.position < s.first_position + s.num_steps * s.instances_per_batch
