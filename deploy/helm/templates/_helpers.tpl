{{- define "labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Common to all pods, including those of runs. */}}
{{- define "podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# Otherwise every run's pod would walk all of /data.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "secretName" -}}
{{- .Values.secrets.existingSecret | default (printf "%s-secrets" .Release.Name) }}
{{- end }}

{{/* The same secrets, for the hook that comes before the rest of a release. */}}
{{- define "firstSecretName" -}}
{{- .Values.secrets.existingSecret | default (printf "%s-migrate" .Release.Name) }}
{{- end }}

{{- define "volumes" -}}
- name: data
  persistentVolumeClaim:
    claimName: {{ .Values.data.existingClaim | default (printf "%s-data" .Release.Name) }}
{{ include "ownVolumes" (dict "root" . "secret" (include "secretName" .)) }}
{{- end }}

{{- define "ownVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if not .root.Values.secrets.vault.role }}
- name: secrets
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    optional: false
{{- else }}
# Vault's agent logs in with this token of its own, as the pod's containers have none.
- name: vault-login
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
{{- end }}
{{- end }}

{{/* The spec of an ExternalSecret, which creates a Secret of the given name. */}}
{{- define "externalSecret" -}}
{{- $external := .root.Values.secrets.external }}
refreshInterval: {{ $external.refresh }}
secretStoreRef: {name: {{ $external.store }}, kind: {{ $external.kind }}}
target: {name: {{ .name }}}
data:
  {{- range .root.Values.secrets.names }}
  - secretKey: {{ . }}
    remoteRef: {key: {{ $external.key }}, property: {{ . }}}
  {{- end }}
{{- end }}

{{/* Not /run/secrets: Kubernetes mounts a service account's token below it, which fails in a read-only volume. */}}
{{- define "secretsFolder" -}}
/etc/pipeline-assets/secrets
{{- end }}

{{- define "settings" -}}
PIPELINE_ENV: {{ .Values.environment }}
PIPELINE_SECRETS_DIR: {{ include "secretsFolder" . }}
{{- range $name, $value := .Values.settings }}
{{- if $value }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
{{- if not .Values.secrets.vault.role }}
- {name: secrets, mountPath: {{ include "secretsFolder" . }}, readOnly: true}
{{- end }}
{{- end }}

{{/* Vault's agent writes each secret as a file where the settings look for it, and keeps it up to date; in a
pod that is meant to end, the agent must end too (agent-pre-populate-only). */}}
{{- define "vaultAnnotations" -}}
{{- with .Values.secrets }}
{{- if .vault.role }}
vault.hashicorp.com/agent-inject: "true"
vault.hashicorp.com/agent-init-first: "true"
vault.hashicorp.com/role: {{ .vault.role | quote }}
vault.hashicorp.com/agent-service-account-token-volume-name: vault-login
vault.hashicorp.com/secret-volume-path: {{ include "secretsFolder" $ }}
{{- $path := .vault.path }}
{{- range .names }}
vault.hashicorp.com/agent-inject-secret-{{ . }}: {{ $path | quote }}
vault.hashicorp.com/agent-inject-template-{{ . }}: {{ printf `{{- with secret %q }}{{ .Data.data.%s }}{{ end -}}` $path . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A pod template with the image; the dict has the chart's root, the part's name and its own values. */}}
{{- define "pod" -}}
{{- $root := .root }}
{{- $isFirst := eq .part "migrate" }}
{{- $launches := has .part (list "daemon" "webserver") }}
metadata:
  labels:
    {{- include "labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
  annotations:
    # A change of the configuration replaces the pods.
    checksum/config: {{ include (print $root.Template.BasePath "/config.yaml") $root | sha256sum }}
    {{- include "vaultAnnotations" $root | nindent 4 }}
    {{- if and $root.Values.secrets.vault.role $isFirst }}
    vault.hashicorp.com/agent-pre-populate-only: "true"
    {{- end }}
spec:
  serviceAccountName: {{ $root.Release.Name }}{{ if $launches }}-launcher{{ else if $isFirst }}-migrate{{ end }}
  automountServiceAccountToken: {{ $launches }}
  enableServiceLinks: false
  securityContext:
    {{- include "podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .grace }}
  terminationGracePeriodSeconds: {{ . }}
  {{- end }}
  {{- with .spread }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "labels" $root | nindent 10 }}
          app.kubernetes.io/component: {{ . }}
  {{- end }}
  containers:
    - name: {{ .part }}
      image: {{ $root.Values.image.reference }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ .args | toJson }}
      {{- if $isFirst }}
      # The hook runs before the ConfigMap and the volume exist.
      env:
        {{- range $name, $value := include "settings" $root | fromYaml }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
      {{- else }}
      env:
        - {name: DAGSTER_HOME, value: /config}
      envFrom:
        - configMapRef: {name: {{ $root.Release.Name }}-settings}
      {{- end }}
      securityContext:
        {{- include "containerSecurity" $root | nindent 8 }}
      {{- with .port }}
      ports:
        - containerPort: {{ . }}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      {{- with .probes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      volumeMounts:
        {{- include "mounts" $root | nindent 8 }}
        {{- if not $isFirst }}
        - {name: config, mountPath: /config, readOnly: true}
        {{- end }}
  volumes:
    {{- if $isFirst }}
    - name: data
      emptyDir: {}
    {{- include "ownVolumes" (dict "root" $root "secret" (include "firstSecretName" $root)) | nindent 4 }}
    {{- else }}
    {{- include "volumes" $root | nindent 4 }}
    - name: config
      configMap: {name: {{ $root.Release.Name }}-config}
    {{- end }}
{{- end }}
