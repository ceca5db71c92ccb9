-- Argo CD's health of a FineTune, by its conditions. Goes into the ConfigMap argocd-cm under
-- resource.customizations.health.finetune.dev_FineTune; docs/gitops.md says what each phase becomes.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready = conditions.Ready

if ready == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the operator has not seen this generation yet" }
end

local stalled = conditions.Stalled or {}
local reconciling = conditions.Reconciling or {}
local held = { Suspended = true, Paused = true }

local health = "Progressing"
if ready.status == "True" then
  health = "Healthy"
elseif stalled.status == "True" then
  health = "Degraded"
elseif held[ready.reason] or held[reconciling.reason] then
  health = "Suspended"
end
return { status = health, message = ready.message }
